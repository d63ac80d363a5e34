use super::*;
use brigade_core::connector::{ErrorKind, FailedReason};
use brigade_embedded::{Options, Store};

const WANT: Want = Want { messages: 10, bytes: usize::MAX };

/// A consumer whose thread says what is sent.
async fn consumer() -> (FileConsumer, mpsc::Sender<Vec<Said>>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("*.txt");
    let queue = QueueSpec::new("shop", "in", serde_json::json!({ "path": path }));
    let reader = Reader { stage: "test".into(), group: "".into(), order: Order::None };
    let state = Store::open(&directory.path().join("state"), Options::default()).unwrap();
    let state: Arc<dyn StateStore> = state;
    let mut consumer = FileConsumer::open(&queue, &reader, &state).await.unwrap();
    let (say, said) = mpsc::channel(AHEAD);
    consumer.said = tokio::sync::Mutex::new(said);
    (consumer, say, directory)
}

fn beginning(path: &str) -> Position {
    let empty = std::fs::File::open("/dev/null").unwrap();
    Position::beginning(path, &empty, crate::settings::Form::LINES).unwrap()
}

fn first_record() -> Numbered {
    let bytes = Bytes::from("x");
    let record = Record { from: 0, to: 2, bytes, truncated: None, broken: None, unfinished: false };
    Numbered { number: 0, record, resolved: false }
}

#[tokio::test]
async fn a_receipt_is_of_its_file_however_many_there_are() {
    const FILES: usize = 1 << 16;
    let (consumer, say, _directory) = consumer().await;
    let file = |n: usize| Progress::new(Some(n.to_string()), beginning(&n.to_string()));
    consumer.hear(Said::File { key: Some("0".to_owned()), position: beginning("0").into() });
    consumer.hear(Said::Records(vec![first_record()]));
    consumer.shared.lock().files.extend((1..FILES).map(file));
    let last = Said::File { key: Some(FILES.to_string()), position: beginning("last").into() };
    say.send(vec![last, Said::Records(vec![first_record()])]).await.unwrap();
    let mut taken = consumer.consume(WANT).await.unwrap();
    while taken.len() < 2 {
        taken.extend(consumer.consume(WANT).await.unwrap());
    }
    let of_last = taken[1].receipt;
    assert_eq!(consumer.locate(of_last), "last:record 1");
    assert!(consumer.ack(vec![of_last], Vec::new()).await.unwrap().fenced.is_empty());
    let shared = consumer.shared.lock();
    assert_eq!(shared.files[FILES].position.records.low(), 1);
    assert_eq!(shared.files[0].position.records.low(), 0, "the first is not resolved");
    assert!(shared.stands(taken[0].receipt));
}

#[tokio::test]
async fn what_is_put_back_at_several_times_comes_in_its_place() {
    let (consumer, _say, _directory) = consumer().await;
    consumer.hear(Said::File { key: Some("0".to_owned()), position: beginning("0").into() });
    let record = |number| Numbered { number, ..first_record() };
    consumer.hear(Said::Records((0..3).map(record).collect()));
    let taken = consumer.consume(WANT).await.unwrap();
    for back in [2, 0, 1] {
        let (receipt, reason) = (taken[back].receipt, FailedReason::Released);
        let failed = Failed { receipt, reason, delay: Duration::ZERO };
        consumer.on_fail(vec![failed]).await.unwrap();
    }
    let again = consumer.consume(WANT).await.unwrap();
    let positions = |all: &[Incoming]| all.iter().map(|one| one.receipt.position).collect();
    let (again, taken): (Vec<u64>, Vec<u64>) = (positions(&again), positions(&taken));
    assert_eq!(again, taken);
}

#[tokio::test]
async fn a_thread_that_dies_is_not_the_end_of_the_files() {
    let (consumer, say, _directory) = consumer().await;
    drop(say);
    let error = consumer.consume(WANT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stalled);
    assert!(!consumer.lag().await.unwrap().at_end);
}

/// Else what was handed out would be given back and come again at each start, before the same fault.
#[tokio::test]
async fn a_fault_is_said_once_what_was_read_before_it_is_resolved() {
    let (consumer, say, _directory) = consumer().await;
    let file = Said::File { key: Some("0".to_owned()), position: beginning("0").into() };
    let failed = Said::Failed(ConnectorError::permanent("it is cut short"));
    say.send(vec![file, Said::Records(vec![first_record()]), failed]).await.unwrap();
    drop(say);
    let taken = consumer.consume(WANT).await.unwrap();
    assert_eq!(taken.len(), 1);
    assert!(matches!(consumer.take(WANT), Ok(Taken::Nothing { until: None, all_said: true })));
    // It comes again before the fault, too.
    let (receipt, reason) = (taken[0].receipt, FailedReason::Released);
    let put_back = Failed { receipt, reason, delay: Duration::ZERO };
    consumer.on_fail(vec![put_back]).await.unwrap();
    let again = consumer.consume(WANT).await.unwrap();
    let resolved = async {
        tokio::task::yield_now().await;
        consumer.ack(vec![again[0].receipt], Vec::new()).await.unwrap();
    };
    let (error, ()) = tokio::join!(consumer.consume(WANT), resolved);
    let error = error.unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Permanent, "it is cut short".into()));
}
