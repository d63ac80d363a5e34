//! A connector of one's own, type `postgres`: a table in which each row is a message. A row that is worked
//! on is hidden for a while and counted, so that who comes late does nothing to it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use brigade::connector::{
    Acked, Connector, ConnectorEnv, ConnectorError, Consumer, Failed, FailedReason, Features,
    Incoming, Lag, Outgoing, Problem, Produced, Producer, QueueSpec, Reader, Receipt, Want,
};
use brigade::state::StoreOp;
use brigade::{IncarnationId, Message, MessageId};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, Row};

/// What is not here cannot be asked for: `brigade check` refuses it.
const FEATURES: Features = Features {
    consume: true,
    produce: true,
    durable: true,
    competing: true,
    delay: true,
    retry_delay: true,
    attempts: true,
    batch: true,
    key: true,
    message_id: true,
    null_payload: true,
    empty_payload: true,
    binary: true,
    ..Features::NONE
};
/// How long a row is hidden from others; it is renewed while it is worked on.
const LEASE: Duration = Duration::from_secs(10);
/// How often an empty table is looked into.
const LOOK: Duration = Duration::from_millis(20);
/// The most rows that are taken at once.
const TAKE_MAX: usize = 500;

/// The connector.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Postgres;

/// The keys of a queue of this type.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    url: String,
    table: Option<String>,
}

#[async_trait]
impl Connector for Postgres {
    fn type_name(&self) -> &'static str {
        "postgres"
    }

    fn features(&self, _: &Value) -> Features {
        FEATURES
    }

    fn schema(&self) -> Value {
        json!({
            "type": "object",
            "required": ["url"],
            "properties": {
                "url": { "type": "string", "description": "The server: `host=… user=… dbname=…`." },
                "table": { "type": "string", "description": "The table. Default: the queue's name." },
            },
        })
    }

    fn check(&self, queue: &QueueSpec) -> Vec<Problem> {
        let config = queue.settings["url"].as_str().unwrap_or_default();
        match config.parse::<tokio_postgres::Config>() {
            Ok(_) => Vec::new(),
            Err(error) => vec![Problem::at("url", error.to_string())],
        }
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        _: &Reader,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        let table = Arc::new(Table::open(queue).await?);
        Ok(Arc::new(TableConsumer {
            table,
            rows: Mutex::default(),
            fetch: tokio::sync::Mutex::default(),
            closed: AtomicBool::new(false),
        }))
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        Ok(Arc::new(TableProducer(Table::open(queue).await?)))
    }
}

/// A table, and a connection that is opened again when it breaks.
struct Table {
    queue: Arc<str>,
    /// The table's name, quoted.
    name: String,
    url: String,
    client: tokio::sync::Mutex<Option<Arc<Client>>>,
}

impl Table {
    async fn open(queue: &QueueSpec) -> Result<Self, ConnectorError> {
        let settings: Settings = queue.settings()?;
        let table = settings.table.unwrap_or_else(|| queue.name.to_string());
        let name = format!("\"{}\"", table.replace('"', "\"\""));
        let (queue, client) = (Arc::clone(&queue.name), tokio::sync::Mutex::default());
        let table = Self { queue, name, url: settings.url, client };
        // Two that make a table at once disturb each other, in spite of `if not exists`.
        let make = format!(
            "begin;
             select pg_advisory_xact_lock(hashtext('brigade'));
             create table if not exists {} (
                position bigserial primary key,
                id text not null unique,
                key bytea,
                payload bytea,
                attempts int not null default 0,
                handed_out bigint not null default 0,
                visible_at timestamptz not null default clock_timestamp()
             );
             commit",
            table.name
        );
        let client = table.client().await?;
        client.batch_execute(&make).await.map_err(|error| table.wrong(&error))?;
        Ok(table)
    }

    async fn client(&self) -> Result<Arc<Client>, ConnectorError> {
        let mut client = self.client.lock().await;
        if let Some(open) = client.as_ref().filter(|client| !client.is_closed()) {
            return Ok(Arc::clone(open));
        }
        let opened = tokio_postgres::connect(&self.url, NoTls).await;
        let (open, connection) = opened.map_err(|error| self.wrong(&error))?;
        // It ends with the client, and its errors are the client's.
        tokio::spawn(connection);
        // That the table is there already is no news.
        let quiet = open.batch_execute("set client_min_messages to warning").await;
        quiet.map_err(|error| self.wrong(&error))?;
        Ok(Arc::clone(client.insert(Arc::new(open))))
    }

    /// A server that is away may come back; a wrong password or table does not get better.
    fn wrong(&self, error: &tokio_postgres::Error) -> ConnectorError {
        let why = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
        let text = format!("queue `{}`, table {}: {why}", self.queue, self.name);
        match error.code().map(|code| &code.code()[..2]) {
            Some("28" | "3D" | "42") => ConnectorError::permanent(text),
            _ => ConnectorError::transient(text),
        }
    }

    /// Runs one statement; says what came back.
    async fn run(
        &self,
        statement: &str,
        values: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Vec<Row>, ConnectorError> {
        let statement = statement.replace("TABLE", &self.name);
        let rows = self.client().await?.query(&statement, values).await;
        rows.map_err(|error| self.wrong(&error))
    }
}

struct TableProducer(Table);

#[async_trait]
impl Producer for TableProducer {
    fn features(&self) -> Features {
        FEATURES
    }

    /// One statement, so all or nothing; a message that is there already is not put again. One
    /// without an id gets one of its own.
    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        let id = |one: &Outgoing| Some(one.message.id).filter(|id| *id != MessageId::default());
        let ids: Vec<_> = batch.iter().map(|one| id(one).map(|id| id.to_string())).collect();
        let keys: Vec<_> = batch.iter().map(|one| one.message.key.as_deref()).collect();
        let payloads: Vec<_> = batch.iter().map(|one| one.message.payload.as_deref()).collect();
        let delays = batch.iter().map(|one| one.delay.unwrap_or_default().as_secs_f64());
        let delays: Vec<f64> = delays.collect();
        let put = "insert into TABLE (id, key, payload, visible_at)
            select coalesce(id, replace(gen_random_uuid()::text, '-', '')), key, payload,
                clock_timestamp() + make_interval(secs => delay)
            from unnest($1::text[], $2::bytea[], $3::bytea[], $4::float8[])
                with ordinality as all_of(id, key, payload, delay, place)
            order by place on conflict (id) do nothing";
        self.0.run(put, &[&ids, &keys, &payloads, &delays]).await?;
        Ok(batch.iter().map(|_| Produced::Confirmed).collect())
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        Ok(())
    }
}

#[derive(Default)]
struct Rows {
    /// Taken from the table, and not handed out yet.
    ready: VecDeque<Incoming>,
    /// What is ours, by position, with the number of its handing-out.
    held: HashMap<u64, u64>,
}

type Fetched = Result<Vec<Row>, ConnectorError>;

struct TableConsumer {
    table: Arc<Table>,
    rows: Mutex<Rows>,
    /// A statement that goes on though nobody waits for it any more: its rows are the next ones.
    fetch: tokio::sync::Mutex<Option<JoinHandle<Fetched>>>,
    closed: AtomicBool,
}

/// Positions and numbers of handing-out, as the table has them.
fn pairs(receipts: impl Iterator<Item = Receipt>) -> (Vec<i64>, Vec<i64>) {
    receipts.map(|receipt| (receipt.position as i64, receipt.fence as i64)).unzip()
}

fn released(receipt: Receipt) -> Failed {
    Failed { receipt, reason: FailedReason::Released, delay: Duration::ZERO }
}

fn incoming(table: &str, row: &Row) -> Incoming {
    let bytes = |name: &str| row.get::<_, Option<Vec<u8>>>(name).map(Into::into);
    let (position, handed_out): (i64, i64) = (row.get("position"), row.get("handed_out"));
    let text: &str = row.get("id");
    // Other programs give ids of their own: an order's number, a UUID. Each stands for itself, whoever reads it
    // and however often.
    let own = || {
        MessageId::root(IncarnationId::of(format!("{table}#{text}").as_bytes()), position as u64)
    };
    let id = text.parse().ok().filter(|id| *id != MessageId::default()).unwrap_or_else(own);
    let message =
        Message { id, key: bytes("key"), payload: bytes("payload"), ..Message::default() };
    let attempts = u32::try_from(row.get::<_, i32>("attempts")).unwrap_or_default();
    let receipt = Receipt { position: position as u64, fence: handed_out as u64 };
    let mut incoming = Incoming::new(message, receipt);
    incoming.attempts = attempts;
    let handed_out = u32::try_from(handed_out).unwrap_or(u32::MAX);
    incoming.redeliveries = handed_out.saturating_sub(1).saturating_sub(attempts);
    incoming
}

impl TableConsumer {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, want: Want) -> Vec<Incoming> {
        let mut rows = self.rows();
        want.fill(|| rows.ready.pop_front())
    }

    async fn fetch(&self, want: Want) -> Result<(), ConnectorError> {
        let mut fetch = self.fetch.lock().await;
        let under_way = fetch.get_or_insert_with(|| {
            let (table, most) = (Arc::clone(&self.table), want.messages.min(TAKE_MAX) as i64);
            tokio::spawn(async move {
                let hide = "update TABLE set handed_out = handed_out + 1,
                        visible_at = clock_timestamp() + make_interval(secs => $2)
                    where position in (
                        select position from TABLE where visible_at <= clock_timestamp()
                        order by position limit $1 for update skip locked)
                    returning *";
                table.run(hide, &[&most, &LEASE.as_secs_f64()]).await
            })
        });
        let fetched = under_way.await;
        *fetch = None;
        let fetched = fetched.map_err(|error| ConnectorError::transient(error.to_string()))??;
        let mut taken: Vec<Incoming> =
            fetched.iter().map(|row| incoming(&self.table.name, row)).collect();
        taken.sort_unstable_by_key(|incoming| incoming.receipt.position);
        let mut rows = self.rows();
        for one in taken {
            rows.held.insert(one.receipt.position, one.receipt.fence);
            rows.ready.push_back(one);
        }
        Ok(())
    }

    /// Waits for the rows of a statement that is under way, if one is.
    async fn end_fetch(&self) -> Result<(), ConnectorError> {
        if self.fetch.lock().await.is_some() {
            self.fetch(Want { messages: 1, bytes: 1 }).await?;
        }
        Ok(())
    }

    /// What a statement did not return is someone else's by now; nothing of it is ours any more.
    fn fenced(&self, receipts: impl Iterator<Item = Receipt>, done: &[Row]) -> Vec<Receipt> {
        let done: Vec<i64> = done.iter().map(|row| row.get(0)).collect();
        let mut rows = self.rows();
        let late = |receipt: &Receipt| !done.contains(&(receipt.position as i64));
        let receipts = receipts.inspect(|receipt| {
            if rows.held.get(&receipt.position) == Some(&receipt.fence) {
                rows.held.remove(&receipt.position);
            }
        });
        receipts.filter(late).collect()
    }
}

#[async_trait]
impl Consumer for TableConsumer {
    fn features(&self) -> Features {
        FEATURES
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        loop {
            if self.closed.load(Ordering::Relaxed) {
                return Err(ConnectorError::closed(&self.table.queue));
            }
            let taken = self.take(want);
            if !taken.is_empty() {
                return Ok(taken);
            }
            self.fetch(want).await?;
            if self.rows().ready.is_empty() {
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    async fn ack(
        &self,
        receipts: Vec<Receipt>,
        ops: Vec<StoreOp>,
    ) -> Result<Acked, ConnectorError> {
        if !ops.is_empty() {
            return Err(ConnectorError::unsupported("outputs in the transaction of the acks"));
        }
        let delete = "delete from TABLE using unnest($1::bigint[], $2::bigint[]) as mine(at, times)
            where position = at and handed_out = times returning position";
        let (positions, times) = pairs(receipts.iter().copied());
        let done = self.table.run(delete, &[&positions, &times]).await?;
        Ok(self.fenced(receipts.into_iter(), &done).into())
    }

    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        let show = "update TABLE set visible_at = clock_timestamp() + make_interval(secs => delay),
                attempts = case when tried < 0 then attempts else tried end
            from unnest($1::bigint[], $2::bigint[], $3::float8[], $4::int[])
                as mine(at, times, delay, tried)
            where position = at and handed_out = times returning position";
        let (positions, times) = pairs(failed.iter().map(|failed| failed.receipt));
        let delays: Vec<f64> = failed.iter().map(|failed| failed.delay.as_secs_f64()).collect();
        let tried = |failed: &Failed| {
            failed.reason.attempts().map_or(-1, |attempts| attempts.try_into().unwrap_or(i32::MAX))
        };
        let tried: Vec<i32> = failed.iter().map(tried).collect();
        let done = self.table.run(show, &[&positions, &times, &delays, &tried]).await?;
        Ok(self.fenced(failed.iter().map(|failed| failed.receipt), &done).into())
    }

    async fn put_back(&self) -> Result<(), ConnectorError> {
        self.end_fetch().await?;
        // If this is dropped now, or fails, they are visible again when their time is over.
        let ready = std::mem::take(&mut self.rows().ready);
        let receipts = ready.into_iter().map(|one| one.receipt);
        self.on_fail(receipts.map(released).collect()).await.map(drop)
    }

    fn lease(&self) -> Option<Duration> {
        Some(LEASE)
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<(), ConnectorError> {
        let hide = "update TABLE set visible_at = clock_timestamp() + make_interval(secs => $3)
            from unnest($1::bigint[], $2::bigint[]) as mine(at, times)
            where position = at and handed_out = times";
        let (positions, times) = pairs(receipts.iter().copied());
        self.table.run(hide, &[&positions, &times, &LEASE.as_secs_f64()]).await.map(drop)
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        let count = "select count(*) filter (where visible_at <= clock_timestamp()),
                count(*) filter (where visible_at > clock_timestamp()) from TABLE";
        let rows = self.table.run(count, &[]).await?;
        let (ready, hidden): (i64, i64) = (rows[0].get(0), rows[0].get(1));
        // What is hidden is held by somebody, or waits for its time: the table does not tell.
        Ok(Lag { ready: Some(ready as u64), in_flight: Some(hidden as u64), ..Lag::default() })
    }

    fn locate(&self, receipt: Receipt) -> String {
        format!("{}#{}", self.table.name.trim_matches('"'), receipt.position)
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        if self.closed.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.end_fetch().await?;
        let rows = std::mem::take(&mut *self.rows());
        let receipts = rows.held.into_iter().map(|(position, fence)| Receipt { position, fence });
        self.on_fail(receipts.map(released).collect()).await.map(drop)
    }
}
