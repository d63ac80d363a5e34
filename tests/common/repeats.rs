//! What came more than once, and which blow to a process or a server made it come again. For that each
//! stage notes in each message when it handled it: `.STAGE = now`.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// How long a line of output is at least, with what three stages note.
pub(crate) const LINE: u64 = 90;

/// For how many seconds after the restart of a server what comes again may be due to it.
const AFTERMATH: f64 = 60.0;

/// What was done to a process or a server, and when, in seconds since 1970.
struct Blow {
    what: String,
    /// The stage whose process it hit; `None`: a server or the machine, and so all of them.
    stage: Option<&'static str>,
    begun: f64,
    ended: f64,
}

/// For how many seconds who looks again and again may not have come to it at most. Longer is a stall, of the whole
/// machine perhaps: what processes have in hand may be taken from them meanwhile, as from dead ones.
const TURN_MAX: f64 = 1.0;

/// Fails where not all blows fell before all was done, if the full figures are asked for: a machine that is too quick
/// for them proves less than it says.
pub(crate) fn all_fell(fell: usize, planned: usize) {
    let is_full = std::env::var_os("BRIGADE_FULL").is_some();
    assert!(fell == planned || !is_full, "only {fell} of {planned} blows fell: it was done before");
}

/// All that was done, in order.
#[derive(Default)]
pub(crate) struct Blows {
    all: Vec<Blow>,
    /// When its test last looked how far things are, if nothing was done since.
    looked: Option<f64>,
}

impl Blows {
    /// To be called by a test each time that it looks how far things are: notes where the machine stood still
    /// since the last time.
    pub(crate) fn look(&mut self) {
        let ended = now();
        if let Some(begun) = self.looked.replace(ended).filter(|begun| ended - begun > TURN_MAX) {
            self.all.push(Blow { what: "a stall".to_owned(), stage: None, begun, ended });
        }
    }

    /// Kills the process of a stage, by a function that waits for its end.
    pub(crate) fn kill(&mut self, stage: &'static str, kill: impl FnOnce()) {
        self.strike(format!("the kill of `{stage}`"), Some(stage), kill);
    }

    /// Restarts a server.
    pub(crate) fn restart(&mut self, server: &str, restart: impl FnOnce()) {
        self.strike(format!("the restart of {server}"), None, restart);
    }

    fn strike(&mut self, what: String, stage: Option<&'static str>, strike: impl FnOnce()) {
        let begun = now();
        strike();
        self.all.push(Blow { what, stage, begun, ended: now() });
        self.looked = None;
    }

    /// How many of which kind there were.
    pub(crate) fn told(&self) -> String {
        let kills = self.all.iter().filter(|blow| blow.stage.is_some()).count();
        format!("{kills} kills and {} restarts of servers or stalls", self.all.len() - kills)
    }

    /// Which blow made a stage handle something again: the first that hit it after it had done so before.
    /// What a restart leaves behind, as a group that is shared out anew, may come a while later.
    fn cause(&self, stage: &str, before: f64, again: f64) -> Option<usize> {
        let hits = |blow: &Blow| blow.begun <= again && blow.stage.is_none_or(|of| of == stage);
        let hits = self.all.iter().enumerate().filter(|(_, blow)| hits(blow));
        let late = |blow: &Blow| blow.stage.is_none() && again <= blow.ended + AFTERMATH;
        let last = hits.clone().rfind(|(_, blow)| late(blow));
        hits.clone().find(|(_, blow)| blow.ended >= before).or(last).map(|(at, _)| at)
    }

    /// Tells what each blow made each stage handle again; fails where that is more than a stage had in
    /// flight, or where there was no blow.
    pub(crate) fn account(&self, stages: &[&'static str], output: &str, in_flight: usize) {
        let (handled, lines) = handled(stages, output);
        let mut repeats: BTreeMap<(usize, &str), Vec<usize>> = BTreeMap::new();
        for ((stage, n, _), times) in &handled {
            let times: Vec<f64> = times.iter().map(|bits| f64::from_bits(*bits)).collect();
            for pair in times.windows(2) {
                let cause = self.cause(stages[*stage], pair[0], pair[1]);
                let cause = cause.unwrap_or_else(|| {
                    let blow = |blow: &Blow| {
                        format!("{} from {} to {}", blow.what, blow.begun, blow.ended)
                    };
                    let done = self.all.iter().map(blow).collect::<Vec<_>>().join("; ");
                    let stage = stages[*stage];
                    panic!(
                        "{n} came again at `{stage}`, and nothing was done: at {times:?}; {done}"
                    )
                });
                repeats.entry((cause, stages[*stage])).or_default().push(*n);
            }
        }
        for ((cause, stage), numbers) in &mut repeats {
            numbers.sort_unstable();
            let (blow, count) = (&self.all[*cause].what, numbers.len());
            println!("by {blow}, {count} again at `{stage}`: {}", ranges(numbers));
            assert!(count <= in_flight, "more than `{stage}` has in flight");
        }
        let all: usize = repeats.values().map(Vec::len).sum();
        let different = handled.keys().filter(|(stage, ..)| *stage == 0).count();
        println!("{all} repeats, at most {in_flight} for each blow and process");
        assert_eq!(lines, different + all, "some were put out twice that were handled once");
    }
}

/// When each stage handled what: by stage, number, and when the stages before it did; the times as bits,
/// which are in the same order. And how many lines there are.
type Handled = BTreeMap<(usize, usize, Vec<u64>), BTreeSet<u64>>;

fn handled(stages: &[&str], output: &str) -> (Handled, usize) {
    let (mut handled, mut lines) = (Handled::new(), 0);
    for line in output.lines() {
        let value: Value = serde_json::from_str(line).expect("no torn line");
        let time = |stage: &&str| value[*stage].as_f64().expect("each stage notes it").to_bits();
        let times: Vec<u64> = stages.iter().map(time).collect();
        let n = value["n"].as_u64().expect("a number") as usize;
        for (stage, time) in times.iter().enumerate() {
            handled.entry((stage, n, times[..stage].to_vec())).or_default().insert(*time);
        }
        lines += 1;
    }
    (handled, lines)
}

/// Numbers that are in order, neighbours together.
pub(crate) fn ranges(numbers: &[usize]) -> String {
    let neighbours = numbers.chunk_by(|one, next| one + 1 == *next);
    let ranges = neighbours.map(|range| match range {
        [one] => one.to_string(),
        _ => format!("{}-{}", range[0], range[range.len() - 1]),
    });
    ranges.collect::<Vec<_>>().join(" ")
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("later than 1970").as_secs_f64()
}
