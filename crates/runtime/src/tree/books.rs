//! Closing the books: whatever came to a party of a line is held there, or has left.

use std::time::Duration;

use actix::prelude::*;
use brigade_core::books::Page;

use super::Tree;
use super::line::{ConsumerEntry, Line};
use crate::status::{PlaceKind, Unaccounted};

/// How often the books are closed; what does not add up is reported at the third closing.
const CLOSING: Duration = Duration::from_millis(700);

/// A party that keeps a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Party {
    /// The consumer of a queue on a lane.
    Consumer { queue: u16, lane: usize },
    /// What the messages of that consumer became.
    Outputs { queue: u16, lane: usize },
    /// The way to the worker with this number.
    Way { worker: usize },
    /// The worker with this number.
    Worker { worker: usize },
}

impl Tree {
    /// Closes the books, and schedules the next closing.
    pub(super) fn close_books(&mut self, ctx: &mut Context<Self>) {
        self.left.retain(ConsumerEntry::is_open);
        let pages: Vec<_> = self.lines.values().flat_map(Line::pages).collect();
        let before = std::mem::take(&mut self.unaccounted);
        for ((stage, party), messages) in self.books.close(pages) {
            let stage = self.plan.stages[usize::from(stage)].name.to_string();
            let (kind, place) = self.place(party);
            let wrong = Unaccounted { stage, kind, place, messages };
            if !before.contains(&wrong) {
                tracing::error!(
                    pipeline = %self.plan.pipeline, stage = %wrong.stage, place = %wrong.place,
                    messages, "the books do not close: this is a defect of Brigade, please report it"
                );
            }
            self.unaccounted.push(wrong);
        }
        ctx.run_later(CLOSING, Self::close_books);
    }

    fn place(&self, party: Party) -> (PlaceKind, String) {
        let name = |queue: u16| &self.plan.queues[usize::from(queue)].spec.name;
        match party {
            Party::Outputs { queue, lane } => {
                let queue = name(queue);
                let place = format!("outputs of what came from queue `{queue}` on lane {lane}");
                (PlaceKind::Consumer, place)
            }
            Party::Consumer { queue, lane } => {
                let queue = name(queue);
                (PlaceKind::Consumer, format!("consumer of queue `{queue}` on lane {lane}"))
            }
            Party::Way { worker } => (PlaceKind::Edge, format!("edge to worker {worker}")),
            Party::Worker { worker } => (PlaceKind::Worker, format!("worker {worker}")),
        }
    }
}

impl Line {
    /// The pages of the line's parties.
    fn pages(&self) -> Vec<((u16, Party), Page)> {
        let consumers = self.consumers().flat_map(|entry| {
            let ((queue, lane), (messages, outputs)) = (entry.place(), entry.control.pages());
            [(Party::Consumer { queue, lane }, messages), (Party::Outputs { queue, lane }, outputs)]
                .map(|(party, page)| ((entry.stage, party), page))
        });
        let mut pages: Vec<_> = consumers.collect();
        for (stage, port) in self.ports_of_all() {
            let worker = port.index;
            pages.push(((stage, Party::Way { worker }), port.page()));
            let page = port.worker_page();
            pages.extend(page.map(|page| ((stage, Party::Worker { worker }), page)));
        }
        pages
    }
}
