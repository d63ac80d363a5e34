//! Drawings of a topology.

use std::fmt::Write;

use crate::topology::{Inputs, Stage, Topology};

/// How a topology is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GraphFormat {
    /// Mermaid, as in Markdown files.
    Mermaid,
    /// DOT, for Graphviz.
    Dot,
    /// For a terminal.
    Text,
}

/// How two things are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    Flow,
    Direct,
    DeadLetter,
}

impl Topology {
    /// Draws it: stages, queues, and what flows between them.
    pub fn graph(&self, format: GraphFormat) -> String {
        match format {
            GraphFormat::Mermaid => self.mermaid(),
            GraphFormat::Dot => self.dot(),
            GraphFormat::Text => self.text(),
        }
    }

    fn edges(&self) -> Vec<(String, String, Edge)> {
        let mut edges = Vec::new();
        for stage in self.stages.values() {
            let name = stage.name.to_string();
            for queue in stage.input_queues() {
                edges.push((queue.to_string(), name.clone(), Edge::Flow));
            }
            if let Inputs::Direct(up) = &stage.inputs {
                edges.push((up.to_string(), name.clone(), Edge::Direct));
            }
            for queue in &stage.outputs {
                edges.push((name.clone(), queue.to_string(), Edge::Flow));
            }
            if let Some(queue) = &stage.dead_letter {
                edges.push((name.clone(), queue.to_string(), Edge::DeadLetter));
            }
        }
        edges
    }

    /// Numbers for nodes, since names may contain characters that the drawing language does not
    /// accept.
    fn number(&self, name: &str) -> usize {
        let queue = self.queues.get_index_of(name);
        let stage = self.stages.get_index_of(name).map(|at| at + self.queues.len());
        queue.or(stage).unwrap_or(usize::MAX)
    }

    fn mermaid(&self) -> String {
        let mut drawing = String::from("flowchart LR\n");
        for queue in self.queues.values() {
            let (name, kind) = (&queue.spec.name, &queue.type_name);
            let _ = writeln!(drawing, "  n{}[(\"{name}<br/>{kind}\")]", self.number(name));
        }
        for stage in self.stages.values() {
            let label = stage_label(stage, "<br/>");
            let _ = writeln!(drawing, "  n{}[\"{label}\"]", self.number(&stage.name));
        }
        for (from, to, edge) in self.edges() {
            let arrow = match edge {
                Edge::Flow => "-->",
                Edge::Direct => "==>",
                Edge::DeadLetter => "-.->",
            };
            let _ = writeln!(drawing, "  n{} {arrow} n{}", self.number(&from), self.number(&to));
        }
        drawing
    }

    fn dot(&self) -> String {
        let mut drawing = String::from("digraph pipeline {\n  rankdir=LR;\n");
        for queue in self.queues.values() {
            let (name, kind) = (&queue.spec.name, &queue.type_name);
            let _ = writeln!(drawing, "  \"{name}\" [shape=cylinder, label=\"{name}\\n{kind}\"];");
        }
        for stage in self.stages.values() {
            let (name, label) = (&stage.name, stage_label(stage, "\\n"));
            let _ = writeln!(drawing, "  \"{name}\" [shape=box, label=\"{label}\"];");
        }
        for (from, to, edge) in self.edges() {
            let style = match edge {
                Edge::Flow => "",
                Edge::Direct => " [style=bold]",
                Edge::DeadLetter => " [style=dashed]",
            };
            let _ = writeln!(drawing, "  \"{from}\" -> \"{to}\"{style};");
        }
        drawing.push_str("}\n");
        drawing
    }

    fn text(&self) -> String {
        let mut drawing = format!("pipeline {}\n", self.pipeline);
        let kind = |name: &str| self.queues.get(name).map_or("", |queue| queue.type_name.as_str());
        for stage in self.stages.values() {
            let inputs: Vec<String> = match &stage.inputs {
                Inputs::Queues { names, .. } => {
                    names.iter().map(|name| format!("({name}: {})", kind(name))).collect()
                }
                Inputs::Direct(up) => vec![format!("[{up}] =")],
            };
            let _ =
                writeln!(drawing, "\n  {} --> [{}]", inputs.join(" + "), stage_label(stage, " "));
            for output in &stage.outputs {
                let _ = writeln!(drawing, "      |--> ({output}: {})", kind(output));
            }
            for stage in &stage.direct {
                let _ = writeln!(drawing, "      |==> [{stage}]");
            }
            match &stage.dead_letter {
                Some(queue) => {
                    let _ = writeln!(drawing, "      `..> ({queue}: {}) dead letters", kind(queue));
                }
                None => drawing.push_str("      `..> dead letters in the state\n"),
            }
        }
        drawing
    }
}

fn stage_label(stage: &Stage, line: &str) -> String {
    let workers = match stage.workers {
        1 => String::new(),
        n => format!(" x{n}"),
    };
    format!("{}{line}{}{workers}", stage.name, stage.component.name)
}
