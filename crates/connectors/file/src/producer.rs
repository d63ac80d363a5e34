use std::borrow::Cow;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use brigade_core::CauseKind;
use brigade_core::connector::{
    ConnectorError, Features, Outgoing, Produced, Producer, QueueSpec, Rejected, Staged,
};
use brigade_core::state::{StateStore, StoreId};
use serde::de::IgnoredAny;

use crate::connector::features;
use crate::settings::{Compression, Settings};
use crate::standard;
use crate::writer::{Appended, Writer, failed};

/// Appends messages to a file, or to standard output.
pub(crate) struct FileProducer {
    settings: Settings,
    compression: Compression,
    queue: QueueSpec,
    /// None for standard output.
    writer: Option<Arc<Writer>>,
    closed: AtomicBool,
    state: Arc<dyn StateStore>,
}

/// A batch as bytes, and what cannot stand in a file.
struct Encoded {
    bytes: Vec<u8>,
    rejected: Vec<(usize, Rejected)>,
}

impl FileProducer {
    pub(crate) fn open(
        queue: &QueueSpec,
        state: &Arc<dyn StateStore>,
    ) -> Result<Self, ConnectorError> {
        let settings: Settings = queue.settings()?;
        let path = settings.path();
        let compression = settings.compression_of(&path);
        let writer = match settings.is_standard() {
            true => None,
            false => Some(Writer::of(&path, compression, state)?),
        };
        if let Some(writer) = &writer {
            writer.enter(queue)?;
        }
        let (queue, state) = (queue.clone(), Arc::clone(state));
        Ok(Self { settings, compression, queue, writer, closed: AtomicBool::new(false), state })
    }

    /// Takes itself out of those who write the file; says whether it was the last.
    fn leave(&self, writer: &Writer) -> bool {
        !self.closed.swap(true, Ordering::Relaxed) && writer.forget(&self.queue)
    }

    fn encode(&self, batch: &[Outgoing]) -> Result<Encoded, ConnectorError> {
        let mut encoded = Encoded { bytes: Vec::new(), rejected: Vec::new() };
        for (at, outgoing) in batch.iter().enumerate() {
            let payload = outgoing.message.payload.as_deref();
            match self.line(payload) {
                Ok(line) => {
                    encoded.bytes.extend_from_slice(&line);
                    encoded.bytes.push(b'\n');
                }
                Err(rejected) => encoded.rejected.push((at, rejected)),
            }
        }
        let path = Path::new(&self.settings.path);
        encoded.bytes =
            compress(encoded.bytes, self.compression).map_err(|error| failed(path, &error))?;
        Ok(encoded)
    }

    /// A payload as one line.
    fn line<'p>(&self, payload: Option<&'p [u8]>) -> Result<Cow<'p, [u8]>, Rejected> {
        let (queue, max) = (&self.queue.name, self.settings.max_message_bytes);
        let refuse = |kind, message: String| Err(Rejected { kind, message });
        let Some(payload) = payload.filter(|payload| !payload.is_empty()) else {
            let text =
                format!("a null or empty payload cannot stand in the lines of queue `{queue}`");
            return refuse(CauseKind::Refused, text);
        };
        if payload.len() > self.settings.max_message_bytes() {
            let bytes = payload.len();
            let text = format!(
                "{bytes} bytes, longer than `max_message_bytes` ({max}) of queue `{queue}`"
            );
            return refuse(CauseKind::TooLarge, text);
        }
        if !payload.contains(&b'\n') && payload.last() != Some(&b'\r') {
            return Ok(payload.into());
        }
        // JSON means the same on one line, as its line breaks stand between its parts only; any other text
        // would become several messages.
        match serde_json::from_slice::<IgnoredAny>(payload) {
            Ok(_) => {
                let mut line = payload.trim_ascii().to_vec();
                let breaks = line.iter_mut().filter(|byte| [b'\n', b'\r'].contains(byte));
                breaks.for_each(|byte| *byte = b' ');
                Ok(line.into())
            }
            Err(_) if !payload.contains(&b'\n') => {
                let text = format!(
                    "a payload that is not JSON and ends in a carriage return would lose it in the lines of queue \
                     `{queue}`"
                );
                refuse(CauseKind::Refused, text)
            }
            Err(_) => {
                let text = format!(
                    "a payload of several lines that is not JSON would be several messages of queue `{queue}`"
                );
                refuse(CauseKind::Refused, text)
            }
        }
    }
}

/// Compresses a batch as a member or frame of its own, which may follow others in one file.
fn compress(bytes: Vec<u8>, compression: Compression) -> std::io::Result<Vec<u8>> {
    match compression {
        _ if bytes.is_empty() => Ok(bytes),
        Compression::None => Ok(bytes),
        Compression::Gzip => {
            let level = flate2::Compression::default();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(&bytes)?;
            encoder.finish()
        }
        Compression::Zstd => zstd::encode_all(&bytes[..], 0),
    }
}

#[async_trait]
impl Producer for FileProducer {
    fn features(&self) -> Features {
        features(&self.settings)
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        let Encoded { bytes, rejected } = self.encode(batch)?;
        if !bytes.is_empty() {
            match &self.writer {
                Some(writer) => {
                    let Appended { op, hold } = writer.append(bytes).await?;
                    self.state.commit(vec![op]).await?;
                    hold.commit();
                }
                None => print(&self.queue.name, bytes, self.compression).await?,
            }
        }
        let mut outcomes: Vec<Produced> = batch.iter().map(|_| Produced::Confirmed).collect();
        for (at, why) in rejected {
            outcomes[at] = Produced::Rejected(why);
        }
        Ok(outcomes)
    }

    async fn stage(&self, batch: &[Outgoing]) -> Result<Staged, ConnectorError> {
        let Encoded { bytes, rejected } = self.encode(batch)?;
        let Some(writer) = self.writer.as_ref().filter(|_| !bytes.is_empty()) else {
            return Ok(Staged { ops: Vec::new(), rejected, hold: None });
        };
        if !rejected.is_empty() {
            // They become dead letters first; the rest is staged again without them.
            return Ok(Staged { ops: Vec::new(), rejected, hold: None });
        }
        let Appended { op, hold } = writer.append(bytes).await?;
        Ok(Staged { ops: vec![op], rejected, hold: Some(hold) })
    }

    fn store(&self) -> Option<StoreId> {
        self.writer.as_ref().map(|_| self.state.store_id())
    }

    fn stage_order(&self) -> &str {
        self.writer.as_ref().map_or("", |writer| writer.name())
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        let last = self.writer.as_ref().filter(|writer| self.leave(writer));
        match last {
            Some(writer) => writer.close().await,
            None => Ok(()),
        }
    }
}

impl Drop for FileProducer {
    fn drop(&mut self) {
        if let Some(writer) = &self.writer {
            self.leave(writer);
        }
    }
}

async fn print(
    queue: &str,
    bytes: Vec<u8>,
    compression: Compression,
) -> Result<(), ConnectorError> {
    let print = move || standard::print(&bytes, compression);
    let printed = tokio::task::spawn_blocking(print).await;
    match printed {
        Ok(Ok(())) => Ok(()),
        // Nobody reads any more: nothing can be done about that by waiting.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            let text = format!("queue `{queue}`: who read standard output has closed it");
            Err(ConnectorError::permanent(text))
        }
        Ok(Err(error)) => Err(failed(Path::new("standard output"), &error)),
        Err(error) => {
            let text = format!("queue `{queue}`: standard output was not written: {error}");
            Err(ConnectorError::transient(text))
        }
    }
}
