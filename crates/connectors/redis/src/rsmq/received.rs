//! What a consumer has received from an RSMQ queue. It stays hidden from others until it is
//! resolved: it is renewed on the thread of the connections, whatever the lane that works on it
//! does.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::connector::{ConnectorError, Incoming, Receipt, Want};
use brigade_core::{IncarnationId, Message, MessageId, Timestamp};
use parking_lot::Mutex;
use redis::ScriptInvocation;

use super::connector::Site;
use super::scripts::{FORGET, HIDE, PUT_BACK, RECEIVE};
use crate::failure::Failure;
use crate::pace::Paced;
use crate::server::ANSWER_MAX;

/// The most messages that are received, or hidden again, at once.
const SCRIPT_MAX: usize = 500;
/// The longest wait before a failed renewal is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How often some of the kept attempts are checked for messages that no longer exist.
const FORGET_AFTER: Duration = Duration::from_secs(1);

/// An id as stored on the server: another program's may not be text.
pub(super) type Id = Vec<u8>;

/// What a receive brought: `None` if there were messages, or if the consumer has given up;
/// otherwise in how many milliseconds the next message may be received, or -1.
pub(super) type Fetched = Result<Option<i64>, ConnectorError>;

/// A received message: id, body, receive count, first receiving, failed attempts.
type Told = (Id, Option<Vec<u8>>, u64, Option<Vec<u8>>, Option<Vec<u8>>);

/// Messages to be hidden for a while: id, fence, how long, failed attempts (-1: unchanged).
pub(super) type Hide = (Id, u64, Duration, i64);

/// The messages that this consumer holds.
pub(super) struct Received {
    pub(super) site: Site,
    pace: Paced,
    held: Mutex<Held>,
    /// Where to go on forgetting the attempts of messages that others have deleted, and when that
    /// was last done.
    forgetting: Mutex<(String, Option<Instant>)>,
    /// Held by a change of hiding times: one at a time.
    hiding: tokio::sync::Mutex<()>,
    /// Held during a receive.
    receiving: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Held {
    /// Not yet handed out.
    ready: VecDeque<Incoming>,
    /// Everything unresolved, by the positions of receipts.
    messages: HashMap<u64, Hidden>,
    next: u64,
    /// From now on nothing here is handed out or resolved.
    given_up: bool,
}

/// A message that nobody else receives for at least one visibility timeout.
#[derive(Clone)]
pub(super) struct Hidden {
    id: Id,
    fence: u64,
    since: Instant,
}

impl Received {
    pub(super) fn new(site: Site) -> Arc<Self> {
        let (pace, held) = (Paced::new(SCRIPT_MAX), Mutex::default());
        let forgetting = Mutex::new(("0".to_owned(), None));
        let (hiding, receiving) = <(tokio::sync::Mutex<()>, tokio::sync::Mutex<()>)>::default();
        Arc::new(Self { site, pace, held, forgetting, hiding, receiving })
    }

    /// Receives what there is.
    pub(super) async fn receive(self: Arc<Self>, want: Want) -> Fetched {
        let _ends = self.receiving.lock().await;
        if self.is_given_up() {
            return Ok(None);
        }
        self.forget_deleted().await;
        let max = self.pace.count(want);
        let (asked, site) = (Instant::now(), &self.site);
        let mut receive = RECEIVE.key(&site.messages);
        receive.key(&site.hash).key(&site.attempts).arg(max).arg(site.vt.as_millis().to_string());
        let receive = Arc::new(receive);
        let ask = |answer_max| site.wire.try_script_for(Arc::clone(&receive), answer_max);
        let mut told = self.pace.ask(ask).await;
        if told.as_ref().is_err_and(Failure::is_no_queue) {
            site.definition.make_again(&site.wire).await?;
            told = self.pace.ask(ask).await;
        }
        let told = told.inspect_err(|_| self.pace.read(max, Err(())));
        let (told, next): (Vec<Told>, i64) = told.map_err(|failure| site.wire.told(&failure))?;
        let next = told.is_empty().then_some(next);
        self.enter_all(told, asked, max);
        if self.is_given_up() {
            let back = self.give_up();
            Arc::clone(&self).hide(back).await?;
        }
        Ok(next)
    }

    /// Now and then forgets attempts of messages that other clients have deleted: those clients
    /// leave them behind. Errors are ignored, as the receive that follows reports their cause.
    async fn forget_deleted(&self) {
        let forgetting = || self.forgetting.lock();
        let begin = {
            let (begin, last) = &mut *forgetting();
            if last.is_some_and(|last| last.elapsed() < FORGET_AFTER) {
                return;
            }
            *last = Some(Instant::now());
            begin.clone()
        };
        let mut forget = FORGET.key(&self.site.messages);
        forget.key(&self.site.attempts).arg(begin);
        if let Ok(next) = self.site.wire.script(forget).await {
            forgetting().0 = next;
        }
    }

    fn enter_all(&self, all: Vec<Told>, since: Instant, max: usize) {
        let mut held = self.held.lock();
        let before = held.ready.len();
        all.into_iter().for_each(|told| self.enter(&mut held, told, since));
        self.pace.read::<()>(max, Ok(&held.ready.make_contiguous()[before..]));
    }

    fn enter(&self, held: &mut Held, told: Told, since: Instant) {
        let (id, body, fence, first, attempts) = told;
        let position = held.next;
        held.next += 1;
        let message = Message {
            id: MessageId::root(IncarnationId::of(&id), 0),
            payload: body.map(Into::into),
            ..Message::default()
        };
        let mut incoming = Incoming::new(message, Receipt { position, fence });
        incoming.attempts = number(attempts);
        let handed_out = u32::try_from(fence).unwrap_or(u32::MAX);
        incoming.redeliveries = handed_out.saturating_sub(1).saturating_sub(incoming.attempts);
        let sent = id.get(..10).and_then(|time| std::str::from_utf8(time).ok());
        let sent = sent.and_then(|time| i64::from_str_radix(time, 36).ok());
        incoming.enqueued_at = sent.map(|usec| Timestamp(usec / 1000));
        incoming.defect = self.site.handed_out_too_often(incoming.redeliveries);
        if incoming.attempts > 0 {
            let first = first.and_then(|first| std::str::from_utf8(&first).ok()?.parse().ok());
            incoming.first_failed_at = first.map(Timestamp);
        }
        held.messages.insert(position, Hidden { id, fence, since });
        held.ready.push_back(incoming);
    }

    /// Whether some message that is not yet handed out may soon be received by others, or already
    /// has been: for example after this process stood still, or the server was away.
    pub(super) fn is_stale(&self) -> bool {
        let (held, half) = (self.held.lock(), self.site.vt / 2);
        let since = |one: &Incoming| held.messages.get(&one.receipt.position).map(|one| one.since);
        held.ready.iter().filter_map(since).any(|since| since.elapsed() >= half)
    }

    /// Hands out messages that were received.
    pub(super) fn take(&self, want: Want) -> Vec<Incoming> {
        let mut held = self.held.lock();
        want.fill(|| held.ready.pop_front())
    }

    /// The id behind a receipt, if it is known.
    pub(super) fn id(&self, position: u64) -> Option<Id> {
        self.held.lock().messages.get(&position).map(|hidden| hidden.id.clone())
    }

    /// The ids behind receipts that still stand here; the rest are fenced.
    pub(super) fn ids(&self, receipts: &[Receipt]) -> (Vec<(Receipt, Id)>, Vec<Receipt>) {
        let held = self.held.lock();
        let (mut known, mut fenced) = (Vec::new(), Vec::new());
        for receipt in receipts {
            match held.messages.get(&receipt.position) {
                Some(one) if one.fence == receipt.fence => known.push((*receipt, one.id.clone())),
                _ => fenced.push(*receipt),
            }
        }
        (known, fenced)
    }

    /// Forgets what is resolved. Returns what is no longer renewed.
    pub(super) fn forget<'r>(
        &self,
        receipts: impl IntoIterator<Item = &'r Receipt>,
    ) -> Vec<(u64, Hidden)> {
        let mut held = self.held.lock();
        let gone = receipts.into_iter().map(|receipt| receipt.position);
        gone.filter_map(|position| Some((position, held.messages.remove(&position)?))).collect()
    }

    /// Takes back what was forgotten: it is unresolved after all.
    pub(super) fn remember(&self, forgotten: Vec<(u64, Hidden)>) {
        self.held.lock().messages.extend(forgotten);
    }

    /// Whether nothing is handed out any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.held.lock().given_up
    }

    /// Forgets everything, and hands out nothing from now on; returns how to give it back. A
    /// receive under way gives back what it brings by itself.
    pub(super) fn give_up(&self) -> Vec<Hide> {
        let mut held = self.held.lock();
        held.given_up = true;
        held.ready.clear();
        let all = held.messages.drain();
        all.map(|(_, Hidden { id, fence, .. })| (id, fence, Duration::ZERO, -1)).collect()
    }

    /// Makes visible again what is not handed out. Like a receive, but it brings nothing.
    pub(super) async fn put_back(self: Arc<Self>) -> Fetched {
        let _turn = self.hiding.lock().await;
        let mut ready = std::mem::take(&mut self.held.lock().ready);
        // Forgotten before the script is sent, so that nothing renews it.
        let forgotten = self.forget(ready.iter().map(|one| &one.receipt));
        let sent = |one: &Incoming| Some((one.receipt.position, one.enqueued_at?.0.to_string()));
        let sent: HashMap<u64, String> = ready.iter().filter_map(sent).collect();
        let mut done = Ok(0);
        for part in forgotten.chunks(SCRIPT_MAX) {
            let mut back = PUT_BACK.key(&self.site.messages);
            back.key(&self.site.hash).key(&self.site.attempts);
            for (position, Hidden { id, fence, .. }) in part {
                back.arg(id).arg(fence).arg(sent.get(position).map_or("", String::as_str));
            }
            done = self.site.wire.script::<u64>(back).await;
            if done.is_err() {
                break;
            }
        }
        if done.is_err() {
            self.remember(forgotten);
            self.held.lock().ready.append(&mut ready);
        }
        done.map(|_| None)
    }

    /// Waits for a receive under way, at most as long as an answer may take; what a slower one
    /// brings is visible again when the visibility timeout is over.
    pub(super) async fn ended(&self) {
        let _ended = tokio::time::timeout(ANSWER_MAX, self.receiving.lock()).await;
    }

    /// Hides messages for a while, counted from now. Returns the places of the fenced.
    pub(super) async fn hide(
        self: Arc<Self>,
        all: Vec<Hide>,
    ) -> Result<Vec<usize>, ConnectorError> {
        let _turn = self.hiding.lock().await;
        self.hide_in_turn(&all).await
    }

    async fn hide_in_turn(&self, all: &[Hide]) -> Result<Vec<usize>, ConnectorError> {
        let mut fenced = Vec::new();
        for (part, hidden) in all.chunks(SCRIPT_MAX).enumerate() {
            let places: Vec<usize> = self.site.wire.script(hiding(&self.site, hidden)).await?;
            fenced.extend(places.into_iter().map(|place| part * SCRIPT_MAX + place));
        }
        Ok(fenced)
    }

    /// Hides everything held for another visibility timeout. What others have received by now is
    /// not handed out.
    pub(super) async fn renew(self: Arc<Self>) -> Result<(), ConnectorError> {
        let _turn = self.hiding.lock().await;
        let (since, vt) = (Instant::now(), self.site.vt);
        let (positions, all): (Vec<u64>, Vec<Hide>) = {
            let held = self.held.lock();
            let all = held.messages.iter();
            all.map(|(position, one)| (*position, (one.id.clone(), one.fence, vt, -1))).unzip()
        };
        let fenced: HashSet<usize> = self.hide_in_turn(&all).await?.into_iter().collect();
        let mut held = self.held.lock();
        let Held { ready, messages, .. } = &mut *held;
        for (place, position) in positions.iter().enumerate() {
            if fenced.contains(&place) {
                messages.remove(position);
            } else if let Some(one) = messages.get_mut(position) {
                one.since = since;
            }
        }
        ready.retain(|one| messages.contains_key(&one.receipt.position));
        Ok(())
    }

    /// Renews for as long as the consumer exists.
    pub(super) async fn keep(self: Arc<Self>) {
        let every = self.site.vt / 3;
        let mut pause = every;
        loop {
            tokio::time::sleep(pause).await;
            pause = every;
            if let Err(error) = Arc::clone(&self).renew().await {
                let queue = &self.site.queue;
                tracing::warn!(%queue, %error, "what is worked on could not be kept from others");
                pause = every.min(AGAIN);
            }
        }
    }
}

/// A number as stored on the server; 0 if there is none.
pub(super) fn number(text: Option<Vec<u8>>) -> u32 {
    text.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()).unwrap_or(0)
}

/// The script that hides these.
pub(super) fn hiding(site: &Site, all: &[Hide]) -> ScriptInvocation<'static> {
    let mut hide = HIDE.key(&site.messages);
    hide.key(&site.hash).key(&site.attempts);
    for (id, fence, period, attempts) in all {
        hide.arg(id).arg(fence).arg(period.as_millis().to_string()).arg(attempts);
    }
    hide
}
