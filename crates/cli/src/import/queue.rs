//! One of Volley's queues in Brigade's terms. Each of its keys is carried over, or there is a note.

use serde_json::{Map, Value, json};

use super::secrets::Secrets;

/// The names for "any model" in Volley.
const ANY_MODEL: [&str; 2] = ["GenericMessage", "ComponentMessage"];
/// What RSMQ takes as a visibility timeout, in seconds.
const VT: std::ops::RangeInclusive<f64> = 1.0..=9_999_999.0;

/// Keys of a Kafka queue's `config` that do not apply here, and why.
const NOT_FOR_KAFKA: [(&str, &str); 15] = [
    ("poll_interval", "Brigade polls by itself"),
    ("poll_interval_seconds", "Brigade polls by itself"),
    ("stop_on_failure", "a failing message is tried again and then kept as a dead letter"),
    ("poll_thread_timeout", "a stop waits as long as `stop_deadline` says"),
    ("enable.auto.offset.store", "Brigade commits what is resolved"),
    ("enable.auto.commit", "Brigade commits what is resolved"),
    ("auto.commit.enable", "Brigade commits what is resolved"),
    ("auto.commit.interval.ms", "Brigade commits what is resolved"),
    ("batch_size", "it is the stage's `batch.size`, with a batch component"),
    ("batch_time_seconds", "it is the stage's `batch.age`, with a batch component"),
    ("acks", "it is always `all`"),
    ("request.required.acks", "it is always `all`"),
    ("enable.idempotence", "it is always on"),
    ("delivery.report.only.error", "the delivery reports decide about acks"),
    ("transactional.id", "`guarantee: exactly_once` makes one for each member"),
];

/// A queue that is being translated; keys that were translated are removed.
pub(super) struct Queue<'q> {
    pub(super) alias: &'q str,
    pub(super) keys: Map<String, Value>,
    pub(super) notes: &'q mut Vec<String>,
    pub(super) secrets: &'q mut Secrets,
}

impl Queue<'_> {
    fn note(&mut self, text: impl std::fmt::Display) {
        self.notes.push(format!("queue `{}`: {text}", self.alias));
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.keys.get(key).and_then(Value::as_str)
    }

    /// The queue in Brigade's terms; `None` if Brigade has no such queues.
    pub(super) fn translate(mut self, place: &str) -> anyhow::Result<Option<Value>> {
        let Some(value) = self.text("value").map(literal) else {
            anyhow::bail!("{place}: queue `{}` has no `value`", self.alias);
        };
        let kind = self.kind();
        let mut config = match self.keys.remove("config") {
            Some(Value::Object(config)) => config,
            None | Some(Value::Null) => Map::new(),
            Some(other) => {
                self.note(format!("`config` is left out: expected a mapping, found {other}"));
                Map::new()
            }
        };
        for (key, _) in config.iter().filter(|(_, value)| value.is_null()) {
            self.note(format!("`config.{key}` is left out: it has no value"));
        }
        config.retain(|_, value| !value.is_null());
        let mut queue = match kind.as_str() {
            "kafka" => self.kafka(&value, config),
            "rsmq" => self.rsmq(&value, config),
            other => {
                let plugin = self.text("consumer").or(self.text("producer")).unwrap_or(other);
                let plugin = plugin.to_owned();
                self.note(format!(
                    "left out: `{plugin}` is a connector of its own; write it as a Connector in Rust \
                     and enter it with `Registry::connector`"
                ));
                return Ok(None);
            }
        };
        if let Some(codec) = self.codec() {
            queue.insert("codec".to_owned(), codec.into());
        }
        self.python();
        let known = ["name", "value", "type", "profile"];
        let unknown = self.keys.keys().filter(|key| !known.contains(&key.as_str()));
        for key in unknown.cloned().collect::<Vec<_>>() {
            self.note(format!("`{key}` means nothing to Volley and is left out"));
        }
        Ok(Some(Value::Object(queue)))
    }

    /// `type` of the list, or what the profile or the classes imply.
    fn kind(&self) -> String {
        if let Some(kind) = self.text("type") {
            return kind.to_lowercase();
        }
        let classes = [self.text("profile"), self.text("consumer"), self.text("producer")];
        let says =
            |word: &str| classes.iter().flatten().any(|class| class.to_lowercase().contains(word));
        match () {
            () if says("confluent") || says("kafka") => "kafka".to_owned(),
            () if says("rsmq") => "rsmq".to_owned(),
            () if says("zmq") => "zmq".to_owned(),
            () => self.text("profile").unwrap_or("a queue without profile").to_owned(),
        }
    }

    fn kafka(&mut self, value: &str, mut config: Map<String, Value>) -> Map<String, Value> {
        let mut queue = Map::new();
        queue.insert("type".to_owned(), "kafka".into());
        let topics: Vec<&str> = value.split(',').map(str::trim).collect();
        match topics[..] {
            [topic] => queue.insert("topic".to_owned(), topic.into()),
            _ => queue.insert("topics".to_owned(), json!(topics)),
        };
        if let Some(group) = config.remove("group.id") {
            queue.insert("group".to_owned(), plain(&group).into());
        }
        for (key, why) in NOT_FOR_KAFKA {
            if config.remove(key).is_some() {
                self.note(format!("`config.{key}` is left out: {why}"));
            }
        }
        if self.text("profile").is_some_and(|profile| profile.contains("batch")) {
            self.note("its messages come one by one: use a batch component in the stage");
        }
        let mut properties = Map::new();
        for (key, value) in config {
            let is_secret = ["password", "secret", "key.pem"].iter().any(|end| key.ends_with(end));
            let value = match value {
                Value::Array(_) | Value::Object(_) => {
                    self.note(format!(
                        "`config.{key}` is left out: {value} is no property's value"
                    ));
                    continue;
                }
                value if is_secret => {
                    let variable = self.secret("KAFKA", &key, &plain(&value));
                    self.note(format!("`{key}` is not carried over: set {variable}"));
                    format!("${{{variable}}}").into()
                }
                Value::String(text) => literal(&text).into(),
                value => value,
            };
            properties.insert(key, value);
        }
        if !properties.is_empty() {
            queue.insert("config".to_owned(), Value::Object(properties));
        }
        queue
    }

    /// The variable that replaces a value which must not be readable in a file.
    fn secret(&mut self, of: &str, key: &str, value: &str) -> String {
        let short = key.strip_prefix("sasl.").unwrap_or(key);
        self.secrets.variable(&format!("{of}_{short}"), value)
    }

    fn rsmq(&mut self, value: &str, mut config: Map<String, Value>) -> Map<String, Value> {
        let mut queue = Map::new();
        queue.insert("type".to_owned(), "rsmq".into());
        queue.insert("queue".to_owned(), value.into());
        let options = match config.remove("options") {
            Some(Value::Object(options)) => options,
            None => Map::new(),
            Some(other) => {
                self.note(format!("`config.options` is left out: {other} is no mapping"));
                Map::new()
            }
        };
        self.server(&mut queue, config.remove("host"), config.remove("port"), options);
        if let Some(vt) = config.remove("vt") {
            self.vt(&mut queue, &vt);
        }
        if let Some(namespace) = config.remove("ns") {
            queue.insert("namespace".to_owned(), plain(&namespace).into());
        }
        if let Some(size) = config.remove("maxsize") {
            queue.insert("maxsize".to_owned(), size);
        }
        if let Some(realtime) = config.remove("realtime") {
            match flag(&realtime) {
                Some(true) => drop(queue.insert("realtime".to_owned(), true.into())),
                Some(false) => {}
                None => self.note(format!("`config.realtime` is left out: {realtime} is no flag")),
            }
        }
        if config.remove("delay").is_some_and(|delay| delay.as_f64() != Some(0.0)) {
            self.note(
                "`config.delay` is left out: a component gives each output its own (`delay(..)`)",
            );
        }
        for key in config.keys() {
            self.note(format!("`config.{key}` is left out: it has no effect here"));
        }
        queue
    }

    /// The server, if the file says anything about it.
    fn server(
        &mut self,
        queue: &mut Map<String, Value>,
        host: Option<Value>,
        port: Option<Value>,
        mut options: Map<String, Value>,
    ) {
        if host.is_none() && port.is_none() && options.is_empty() {
            return;
        }
        let mut option = |key: &str| options.remove(key).filter(|value| !value.is_null());
        let tls = option("ssl").is_some_and(|ssl| self.tls(&ssl));
        let user = option("username").map(|user| escaped(&plain(&user))).unwrap_or_default();
        let (password, database) = (option("password"), option("db"));
        let mut certificates = Map::new();
        for (key, own) in
            [("ssl_ca_certs", "ca"), ("ssl_certfile", "certificate"), ("ssl_keyfile", "key")]
        {
            match option(key) {
                Some(path) if tls => drop(certificates.insert(own.into(), plain(&path).into())),
                Some(_) => {
                    self.note(format!(
                        "`config.options.{key}` is left out: there is no `ssl: true`"
                    ));
                }
                None => {}
            }
        }
        for key in options.keys() {
            self.note(format!("`config.options.{key}` is left out: it is redis-py's alone"));
        }
        let secret = password.map(|password| self.secret("REDIS", "password", &plain(&password)));
        let who = match secret {
            Some(variable) => {
                self.note(format!(
                    "`password` is not carried over: set {variable}, percent-encoded, as it stands in \
                     an address"
                ));
                format!("{user}:${{{variable}}}@")
            }
            None if user.is_empty() => String::new(),
            None => format!("{user}@"),
        };
        // Volley takes a missing host from the environment.
        let host = host.map_or_else(|| "${REDIS_HOST:-127.0.0.1}".to_owned(), |host| plain(&host));
        let port = port.map_or_else(|| "6379".to_owned(), |port| plain(&port));
        let database = database.map(|db| format!("/{}", plain(&db))).unwrap_or_default();
        let scheme = if tls { "rediss" } else { "redis" };
        queue.insert("url".to_owned(), format!("{scheme}://{who}{host}:{port}{database}").into());
        if !certificates.is_empty() {
            queue.insert("tls".to_owned(), Value::Object(certificates));
        }
    }

    /// Whether the connection is to be encrypted.
    fn tls(&mut self, ssl: &Value) -> bool {
        flag(ssl).unwrap_or_else(|| {
            // To Python it is true, and without encryption everyone could read the password.
            self.note(format!("`config.options.ssl` is taken as `true`: {ssl} is no flag"));
            true
        })
    }

    /// The visibility timeout, which is in whole seconds here.
    fn vt(&mut self, queue: &mut Map<String, Value>, vt: &Value) {
        let seconds = vt.as_f64().or_else(|| vt.as_str()?.trim().parse().ok());
        let Some(whole) = seconds.map(f64::ceil).filter(|whole| VT.contains(whole)) else {
            self.note(format!(
                "`config.vt` is left out: expected 1 to 9999999 seconds, found {vt}"
            ));
            return;
        };
        if seconds != Some(whole) {
            self.note(format!("`config.vt` is {whole}s instead of {vt}: RSMQ takes whole seconds"));
        }
        queue.insert("vt".to_owned(), format!("{whole}s").into());
    }

    /// The codec, if it is not JSON.
    fn codec(&mut self) -> Option<&'static str> {
        let profile = self.text("profile").unwrap_or_default().to_owned();
        let serializer = match self.keys.remove("serializer") {
            None if profile.contains("msgpack") => "msgpack".to_owned(),
            None if profile.ends_with("-dlq") => return None,
            None => "json".to_owned(),
            Some(Value::Null) => "none".to_owned(),
            Some(other) => other.as_str().unwrap_or_default().to_lowercase(),
        };
        let codec = match () {
            () if serializer.contains("msgpack") => Some("messagepack"),
            () if ["json", "none", "disabled"].iter().any(|known| serializer.contains(known)) => {
                None
            }
            () => {
                self.note(format!(
                    "the serializer `{serializer}` has no codec here; JSON is taken"
                ));
                return None;
            }
        };
        if serializer.contains('.') && !serializer.starts_with("volley.") {
            let is = codec.unwrap_or("json");
            self.note(format!(
                "the serializer `{serializer}` is a class of its own; {is} is taken"
            ));
        }
        codec
    }

    /// What refers to Python: models, and classes that stand for Volley's.
    fn python(&mut self) {
        for key in ["data_model", "schema"] {
            let Some(Value::String(model)) = self.keys.remove(key) else { continue };
            let is_any = ANY_MODEL.iter().any(|any| model.ends_with(any));
            if !is_any && !is_disabled(&model) {
                self.note(format!(
                    "`{model}` is a Python class: give the queue a `schema`, a JSON Schema \
                     (`{}.model_json_schema()`) or a Rust type",
                    model.rsplit('.').next().unwrap_or_default()
                ));
            }
        }
        if let Some(Value::String(handler)) = self.keys.remove("model_handler")
            && !is_disabled(&handler)
        {
            self.note(format!(
                "the model handler `{handler}` is left out: components take values, or Rust types"
            ));
        }
        for key in ["consumer", "producer"] {
            let class = self.keys.remove(key).unwrap_or_default();
            let class = class.as_str().unwrap_or_default();
            if !class.is_empty() && !class.starts_with("volley.") {
                self.note(format!(
                    "the {key} `{class}` is left out: Brigade's own takes its place"
                ));
            }
        }
    }
}

/// A flag as Volley reads it: in YAML 1.1 some words are flags that are texts in YAML 1.2, and
/// Python takes 0 and 1.
fn flag(value: &Value) -> Option<bool> {
    match plain(value).to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

fn is_disabled(class: &str) -> bool {
    ["none", "disabled"].iter().any(|word| class.eq_ignore_ascii_case(word))
}

/// A text as written in a pipeline file, where `$` begins a variable.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// A value as text in a pipeline file.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), literal)
}

/// A user's name as a part of a URL.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~$".contains(&byte);
    text.bytes().fold(String::new(), |mut all, byte| {
        match plain(byte) {
            true => all.push(char::from(byte)),
            false => all += &format!("%{byte:02X}"),
        }
        all
    })
}
