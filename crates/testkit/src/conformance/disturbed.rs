//! Disturbing the backend while the queue is in use.

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

/// How long the whole test may take: each disturbance may take as long as the suite is patient.
const WHOLE: Duration = Duration::from_secs(600);
/// How long to wait for a message before doing something else.
const SLOW: Duration = Duration::from_secs(5);
const QUICK: Duration = Duration::from_millis(200);

/// The thread that causes the disturbances.
struct Blows {
    next: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Blows {
    fn new(disturb: Disturb) -> Self {
        // Sending waits until the blow falls, so that it falls while there is work.
        let (next, due) = sync_channel(0);
        let thread = std::thread::spawn(move || due.iter().for_each(|()| disturb()));
        Self { next, thread }
    }

    /// Strikes once more, when the previous blow is over.
    fn strike(&self) {
        self.next.send(()).expect("the disturbance does not fail");
    }

    fn end(self) {
        drop(self.next);
        self.thread.join().expect("the disturbance does not fail");
    }
}

/// Whatever happens to the backend, the connector waits for it, and every message is done at least
/// once, even if it failed before.
pub async fn a_disturbed_backend_loses_nothing(fixture: &Fixture) {
    const MESSAGES: usize = 1_000;
    let Some(disturb) = fixture.disturb.clone() else { return };
    let (blows, begun) = (Blows::new(disturb), Instant::now());
    let producer = fixture.producer().await;
    // Messages that were put or given back once more, since it is not known whether the first time
    // worked.
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
        // Fails only the first time that it comes.
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

/// `settle_together`: whatever happens to the backend, the output of a message is put once.
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
        // A message that was not done after all comes again.
        pass_on(fixture, &mut consumer, &producer, QUICK).await;
        let taken = take_some(&beside, &mut output, QUICK).await;
        // A message that is not settled comes again.
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

/// The messages that come in time, if any. A consumer that is stalled is opened again, as the
/// runtime does it; nothing that came from it is in hand at that point.
async fn take_some(
    fixture: &Fixture,
    consumer: &mut Arc<dyn Consumer>,
    patience: Duration,
) -> Vec<Incoming> {
    let want = Want { messages: 20, bytes: usize::MAX };
    match tokio::time::timeout(patience, consumer.consume(want)).await {
        Ok(Ok(taken)) => return taken,
        Ok(Err(error)) if error.kind() == ErrorKind::Stalled => {
            // It may not be able to close.
            drop(consumer.shutdown().await);
            *consumer = fixture.consumer("", Order::None).await;
        }
        Ok(Err(error)) => assert!(error.is_transient(), "a disturbance passes: {error}"),
        Err(_) => {}
    }
    Vec::new()
}

/// Fails messages. Returns those that may be waiting to come again although it is not known that
/// they are gone from here: they may come twice.
async fn give_back(consumer: &Arc<dyn Consumer>, bad: &[Incoming]) -> Vec<u64> {
    let failed: Vec<Failed> =
        bad.iter().map(|one| attempt(one, Duration::from_millis(1))).collect();
    let (given, tries) = again(async || consumer.on_fail(failed.clone()).await).await;
    let unknown = |one: &&Incoming| tries > 1 || given.fenced.contains(&one.receipt);
    bad.iter().filter(unknown).map(number).collect()
}

/// Puts an output for each message that comes, in one step with the acks; returns what is done.
async fn pass_on(
    fixture: &Fixture,
    consumer: &mut Arc<dyn Consumer>,
    producer: &Arc<dyn Producer>,
    patience: Duration,
) -> Vec<u64> {
    let (mut taken, mut done) = (take_some(fixture, consumer, patience).await, Vec::new());
    // After a lost lease nothing is done; the other messages still stand.
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

/// Acks until there is an answer; returns what is done.
async fn settle(consumer: &Arc<dyn Consumer>, taken: &[Incoming]) -> Vec<u64> {
    let (acked, tries) = ack_patiently(consumer, taken).await;
    done_of(taken, &acked, tries, true)
}

async fn ack_patiently(consumer: &Arc<dyn Consumer>, taken: &[Incoming]) -> (Acked, u32) {
    again(async || consumer.ack(receipts(taken), Vec::new()).await).await
}

/// The messages that stood when they were acked. One that no longer stands counts too if there was
/// an earlier try, which may have acked it before its answer was lost.
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
