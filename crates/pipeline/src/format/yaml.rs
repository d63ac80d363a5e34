//! YAML, parsed from its events, so that every key and value keeps its position.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::{DEPTH_MAX, Places, SyntaxError};
use crate::node::{Entry, Node, NodeValue, plain};

/// Aliases are copied; a file may have this many nodes after that, so that a few lines cannot
/// become gigabytes.
const NODES_MAX: usize = 100_000;

pub(super) fn parse(text: &str, places: &Places<'_>) -> Result<Node, SyntaxError> {
    let mut loader = Loader { places, anchors: HashMap::new(), nodes: 0 };
    let mut events = Events { parser: Parser::new_from_str(text), places };
    let mut document = None;
    loop {
        let (event, span) = events.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            _ if document.is_some() => {
                let wrong = SyntaxError::new(events.origin(&span), "a second document in one file");
                return Err(wrong.help(Some("give it a file of its own, and remove the `---`")));
            }
            event => document = Some(loader.node(event, &span, &mut events, 0)?),
        }
    }
    Ok(document.unwrap_or_else(|| Node::new(NodeValue::Null, places.at(1, 1))))
}

struct Events<'t, 'p> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    places: &'p Places<'t>,
}

impl<'t> Events<'t, '_> {
    fn next(&mut self) -> Result<(Event<'t>, Span), SyntaxError> {
        match self.parser.next() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let marker = error.marker();
                let origin = self.places.at(marker.line(), marker.col() + 1);
                let wrong = SyntaxError::new(origin, format!("not valid YAML: {}", error.info()));
                Err(wrong.help(advice(error.info())))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn origin(&self, span: &Span) -> crate::node::Origin {
        self.places.at(span.start.line(), span.start.col() + 1)
    }
}

/// The usual cause of an error from the parser.
fn advice(error: &str) -> Option<&'static str> {
    let known = [
        ("simple key", "a `:` is missing after a key, here or on the line before"),
        ("tabs", "indent with spaces"),
        ("quoted scalar", "the quote before has no end"),
        ("unknown anchor", "a text that begins with `*` has to stand in quotes"),
        ("block mapping", "indent the keys of a mapping alike"),
    ];
    known.iter().find(|(word, _)| error.contains(word)).map(|(_, advice)| *advice)
}

struct Loader<'t, 'p> {
    places: &'p Places<'t>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl<'t> Loader<'t, '_> {
    fn node(
        &mut self,
        event: Event<'t>,
        span: &Span,
        events: &mut Events<'t, '_>,
        depth: usize,
    ) -> Result<Node, SyntaxError> {
        let origin = self.places.at(span.start.line(), span.start.col() + 1);
        self.nodes += 1;
        if depth > DEPTH_MAX {
            return Err(SyntaxError::new(origin, format!("nested more than {DEPTH_MAX} deep")));
        }
        if self.nodes > NODES_MAX {
            let message = format!("more than {NODES_MAX} values, those of aliases among them");
            return Err(SyntaxError::new(origin, message));
        }
        let (value, anchor) = match event {
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                let node = node.ok_or_else(|| SyntaxError::new(origin, "an alias of nothing"))?;
                self.nodes += size(&node);
                return Ok(node);
            }
            Event::Scalar(text, ScalarStyle::Plain, anchor, None) => (plain(&text), anchor),
            Event::Scalar(text, _, anchor, _) => (NodeValue::Text(text.into_owned()), anchor),
            Event::SequenceStart(anchor, _) => (self.list(events, depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.map(events, depth)?, anchor),
            _ => return Err(SyntaxError::new(origin, "the file ends in the middle")),
        };
        let node = Node::new(value, origin);
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(
        &mut self,
        events: &mut Events<'t, '_>,
        depth: usize,
    ) -> Result<NodeValue, SyntaxError> {
        let mut items = Vec::new();
        loop {
            match events.next()? {
                (Event::SequenceEnd, _) => return Ok(NodeValue::List(items)),
                (event, span) => items.push(self.node(event, &span, events, depth + 1)?),
            }
        }
    }

    fn map(&mut self, events: &mut Events<'t, '_>, depth: usize) -> Result<NodeValue, SyntaxError> {
        let mut entries = Vec::new();
        loop {
            let (event, span) = events.next()?;
            let origin = events.origin(&span);
            let key = match event {
                Event::MappingEnd => return Ok(NodeValue::Map(entries)),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(SyntaxError::new(origin, "a key has to be a word")),
            };
            let (event, span) = events.next()?;
            let node = self.node(event, &span, events, depth + 1)?;
            entries.push(Entry { key, origin, node });
        }
    }
}

fn size(node: &Node) -> usize {
    match &node.value {
        NodeValue::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        NodeValue::Map(entries) => 1 + entries.iter().map(|e| size(&e.node)).sum::<usize>(),
        _ => 1,
    }
}
