//! Where a component's outputs go: to queues, and over direct edges.

use std::any::Any;
use std::sync::Arc;

use brigade_core::component::Emitted;
use brigade_core::connector::Outgoing;
use brigade_core::delivery::{Delivery, Outputs};
use brigade_core::{Cause, CauseKind, Codec, Message, Period};
use smallvec::SmallVec;

use crate::plan::Target;
use crate::runner::RunnerSite;

/// The outputs of one message: for queues, and for stages fed directly.
pub(crate) type Routed = (Outputs, Vec<Child>);

/// An output over a direct edge.
pub(crate) struct Child {
    pub(crate) stage: u16,
    pub(crate) message: Message,
    /// What its payload was encoded from, if it is known and goes to no other stage.
    pub(crate) typed: Option<Box<dyn Any + Send>>,
    pub(crate) codec: Codec,
}

impl RunnerSite {
    /// Finds where each output goes and makes its message.
    pub(crate) fn route(
        &self,
        delivery: &Delivery,
        emitted: SmallVec<[Emitted; 1]>,
    ) -> Result<Routed, Cause> {
        let (mut outputs, mut direct) = (Outputs::new(), Vec::new());
        let mut index = 0;
        for mut output in emitted {
            let targets = self.targets(&output)?;
            for (at, (name, target)) in targets.iter().enumerate() {
                self.can_delay(&output, name, *target)?;
                // Only payloads that go several ways are shared.
                let payload = match at + 1 == targets.len() {
                    true => output.payload.take(),
                    false => output.payload.clone(),
                };
                let mut message = output.message(&delivery.message, payload);
                message.id = delivery.message.id.output(&self.stage.name, name, index);
                let codec = if output.is_value() { Codec::Json } else { delivery.codec };
                index += 1;
                match *target {
                    Target::Queue(queue) => {
                        self.queues[usize::from(queue)].send(&mut message, codec)?;
                        outputs.push((queue, Outgoing { message, delay: output.delay() }));
                    }
                    Target::Direct(stage) => {
                        let is_last = at + 1 == targets.len();
                        let typed = if is_last { output.take_typed() } else { None };
                        direct.push(Child { stage, message, typed, codec });
                    }
                }
            }
        }
        Ok((outputs, direct))
    }

    /// Refuses a delay where nothing can wait, since the output would be handed out at once.
    fn can_delay(&self, output: &Emitted, name: &str, target: Target) -> Result<(), Cause> {
        let Some(delay) = output.delay().filter(|_| output.is_delayed()) else { return Ok(()) };
        let what = match target {
            Target::Direct(_) => format!(
                "stage `{name}`, which is fed directly, where nothing can wait: name an `embedded` \
                 queue between them"
            ),
            Target::Queue(queue) => {
                let queue = &self.queues[usize::from(queue)];
                if queue.features.delay {
                    return Ok(());
                }
                let kind = queue.keeper.type_name();
                format!("queue `{name}` of type {kind}, which cannot delay: use an `embedded` one")
            }
        };
        let (delay, from) = (Period(delay), &self.stage.name);
        let message = format!("stage `{from}` delays an output by {delay} for {what}");
        Err(Cause::new(CauseKind::Output, message))
    }

    /// The queues and stages that an output goes to.
    pub(crate) fn targets(&self, output: &Emitted) -> Result<&[(Arc<str>, Target)], Cause> {
        let all = &self.stage.outputs;
        let declared = || {
            let names: Vec<_> = all.iter().map(|(name, _)| format!("`{name}`")).collect();
            format!(
                "stage `{}` declares {}",
                self.stage.name,
                match names.len() {
                    0 => "no output".to_owned(),
                    _ => names.join(", "),
                }
            )
        };
        let wrong = |what: String| Cause::new(CauseKind::Output, format!("{what}; {}", declared()));
        match &output.output {
            Some(name) => all
                .iter()
                .position(|(have, _)| **have == **name)
                .map(|at| &all[at..=at])
                .ok_or_else(|| wrong(format!("no output `{name}`"))),
            None if all.len() == 1 || (self.stage.copy && !all.is_empty()) => Ok(all),
            None => Err(wrong("the output has no name".to_owned())),
        }
    }
}
