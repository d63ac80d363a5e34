//! What is done to the backend while the queue is in use.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use brigade_core::connector::{
    Acked, Consumer, ErrorKind, Failed, Incoming, Order, Outgoing, Produced, Producer, Receipt,
    Want,
};

use super::attempt;
use super::store::beside;
use crate::fixture::{Disturb, Fixture, again, expect_nothing, number, numbered, patiently};

/// How long all of it may take: each of the disturbances may take as long as the suite is patient.
const WHOLE: Duration = Duration::from_secs(600);
/// How long a message may take to come before something else is looked at.
const SLOW: Duration = Duration::from_secs(5);
const QUICK: Duration = Duration::from_millis(200);

/// The disturbance, on its thread.
struct Blows {
    next: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Blows {
    fn new(disturb: Disturb) -> Self {
        // Who strikes waits until the blow falls, so that it falls while there is work.
        let (next, due) = sync_channel(0);
        let thread = std::thread::spawn(move || due.iter().for_each(|()| disturb()));
        Self { next, thread }
    }

    /// Once more, when the one before is over.
    fn strike(&self) {
        self.next.send(()).expect("the disturbance does not fail");
    }

    fn end(self) {
        drop(self.next);
        self.thread.join().expect("the disturbance does not fail");
    }
}

/// Whatever is done to the backend: it is waited for, and every message is done at least once, also
/// when it failed before.
pub async fn a_disturbed_backend_loses_nothing(fixture: &Fixture) {
    const MESSAGES: usize = 1_000;
    let Some(disturb) = fixture.disturb.clone() else { return };
    let (blows, begun) = (Blows::new(disturb), Instant::now());
    let producer = fixture.producer().await;
    // What was put or given back once more, as nobody knows whether it was before.
    let mut twice: BTreeSet<u64> = BTreeSet::new();
    for n in 0..MESSAGES as u64 {
        if n == MESSAGES as u64 / 2 {
            blows.strike();
        }
        while !put_one(producer.as_ref(), n).await {
            twice.insert(n);
        }
    }
    blows.strike();
    let mut consumer = fixture.consumer("", Order::None).await;
    let (mut done, mut failed) = (BTreeSet::new(), BTreeSet::new());
    let mut settled: BTreeSet<u64> = BTreeSet::new();
    let mut due = [MESSAGES / 2].into_iter().peekable();
    while done.len() < MESSAGES {
        assert!(begun.elapsed() < WHOLE, "{} of {MESSAGES}", done.len());
        if due.next_if(|due| done.len() >= *due).is_some() {
            blows.strike();
        }
        let taken = take_some(fixture, &mut consumer, SLOW).await;
        let again = taken.iter().map(number).find(|n| settled.contains(n));
        assert_eq!(again, None, "it came again after its ack was answered");
        // The first time that it comes.
        let fails = |one: &Incoming| number(one) % 10 == 3 && failed.insert(number(one));
        let (bad, good): (Vec<_>, Vec<_>) = taken.into_iter().partition(fails);
        twice.extend(give_back(&consumer, &bad).await);
        let (acked, tries) = ack_patiently(&consumer, &good).await;
        let of_good = done_of(&good, &acked, tries, true);
        if tries == 1 {
            settled.extend(of_good.iter().filter(|n| !twice.contains(n)));
        }
        done.extend(of_good);
    }
    blows.end();
}

/// `settle_together`: whatever is done to the backend, what a message became is put once.
pub async fn what_a_disturbed_backend_settles_is_put_once(fixture: &Fixture) {
    const MESSAGES: usize = 200;
    let Some(disturb) = fixture.disturb.clone() else { return };
    if !fixture.features().settle_together {
        return;
    }
    fixture.put((0..MESSAGES as u64).map(numbered).collect()).await;
    let mut consumer = fixture.consumer("", Order::None).await;
    if consumer.store().is_none() {
        return;
    }
    let beside = beside(fixture);
    let producer = beside.producer().await;
    assert_eq!(producer.store(), consumer.store(), "one store");
    let (blows, begun) = (Blows::new(disturb), Instant::now());
    let mut due = [0, MESSAGES / 2].into_iter().peekable();
    let mut done = BTreeSet::new();
    while done.len() < MESSAGES {
        assert!(begun.elapsed() < WHOLE, "{} of {MESSAGES}", done.len());
        if due.next_if(|due| done.len() >= *due).is_some() {
            blows.strike();
        }
        done.extend(pass_on(fixture, &mut consumer, &producer, SLOW).await);
    }
    blows.end();
    let mut output = beside.consumer("", Order::None).await;
    let mut seen = BTreeSet::new();
    while seen.len() < MESSAGES {
        assert!(begun.elapsed() < WHOLE, "{} of {MESSAGES} are put", seen.len());
        // What was not done after all comes again.
        pass_on(fixture, &mut consumer, &producer, QUICK).await;
        let taken = take_some(&beside, &mut output, QUICK).await;
        // What is not settled comes again.
        for n in settle(&output, &taken).await {
            assert!(seen.insert(n), "{n} is put twice");
        }
    }
    expect_nothing(&consumer).await;
    expect_nothing(&output).await;
}

async fn put_one(producer: &dyn Producer, n: u64) -> bool {
    match producer.produce(&[numbered(n).into()]).await {
        Ok(outcomes) => {
            let refused = outcomes.iter().find(|one| matches!(one, Produced::Rejected(_)));
            assert!(refused.is_none(), "a disturbance passes: {refused:?}");
            matches!(outcomes[..], [Produced::Confirmed])
        }
        Err(error) => {
            assert!(error.is_transient(), "a disturbance passes: {error}");
            false
        }
    }
}

/// What comes in time, if something does. A consumer that does not get on is opened again, as the runtime does it;
/// nothing that came from it is in hand then.
async fn take_some(
    fixture: &Fixture,
    consumer: &mut Arc<dyn Consumer>,
    patience: Duration,
) -> Vec<Incoming> {
    let want = Want { messages: 20, bytes: usize::MAX };
    match tokio::time::timeout(patience, consumer.consume(want)).await {
        Ok(Ok(taken)) => return taken,
        Ok(Err(error)) if error.kind() == ErrorKind::Stalled => {
            // It may not be able to say that it goes.
            drop(consumer.shutdown().await);
            *consumer = fixture.consumer("", Order::None).await;
        }
        Ok(Err(error)) => assert!(error.is_transient(), "a disturbance passes: {error}"),
        Err(_) => {}
    }
    Vec::new()
}

/// Fails messages. Answers with those that may be waiting to come again though they are not known to be gone from
/// here: they may come twice.
async fn give_back(consumer: &Arc<dyn Consumer>, bad: &[Incoming]) -> Vec<u64> {
    let failed: Vec<Failed> =
        bad.iter().map(|one| attempt(one, Duration::from_millis(1))).collect();
    let (given, tries) = again(async || consumer.on_fail(failed.clone()).await).await;
    let unknown = |one: &&Incoming| tries > 1 || given.fenced.contains(&one.receipt);
    bad.iter().filter(unknown).map(number).collect()
}

/// Puts what comes onto the output, in one with the acks; answers with what is done.
async fn pass_on(
    fixture: &Fixture,
    consumer: &mut Arc<dyn Consumer>,
    producer: &Arc<dyn Producer>,
    patience: Duration,
) -> Vec<u64> {
    let (mut taken, mut done) = (take_some(fixture, consumer, patience).await, Vec::new());
    // With a lease that is lost nothing is done; the others stand.
    while !taken.is_empty() {
        let batch: Vec<Outgoing> = taken.iter().map(|one| numbered(number(one)).into()).collect();
        let staged = patiently(async || producer.stage(&batch).await).await;
        assert_eq!(staged.rejected.len(), 0, "a disturbance passes: {staged:?}");
        let (acked, tries) =
            again(async || consumer.ack(receipts(&taken), staged.ops.clone()).await).await;
        assert_eq!(acked.refused.len(), 0, "a disturbance passes: {acked:?}");
        if let (Some(hold), []) = (staged.hold, &acked.fenced[..]) {
            hold.commit();
        }
        let all_stand = acked.fenced.is_empty();
        done.extend(done_of(&taken, &acked, tries, all_stand));
        taken.retain(|one| !all_stand && !acked.fenced.contains(&one.receipt));
    }
    done
}

/// Acks until there is an answer; answers with what is done.
async fn settle(consumer: &Arc<dyn Consumer>, taken: &[Incoming]) -> Vec<u64> {
    let (acked, tries) = ack_patiently(consumer, taken).await;
    done_of(taken, &acked, tries, true)
}

async fn ack_patiently(consumer: &Arc<dyn Consumer>, taken: &[Incoming]) -> (Acked, u32) {
    again(async || consumer.ack(receipts(taken), Vec::new()).await).await
}

/// What stood when it was acked. A try whose answer was lost may have done it, and then it stands no
/// more at the next: such count too.
fn done_of(taken: &[Incoming], acked: &Acked, tries: u32, standing: bool) -> Vec<u64> {
    let done = |one: &&Incoming| match acked.fenced.contains(&one.receipt) {
        true => tries > 1,
        false => standing,
    };
    taken.iter().filter(done).map(number).collect()
}

fn receipts(taken: &[Incoming]) -> Vec<Receipt> {
    taken.iter().map(|one| one.receipt).collect()
}
