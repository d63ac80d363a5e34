//! What is told of an error of Redis: which queue, what was wrong, and what to change.

use brigade_core::connector::ConnectorError;
use redis::{ErrorKind, RedisError};

use crate::script::commands_at;
use crate::server::Place;

/// How much of a server's error is told, in characters.
const TOLD_MAX: usize = 400;

/// An error, and whether it came up while a connection was made.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: RedisError,
    pub(crate) connecting: bool,
}

impl Failure {
    /// What it means, for people and for the runtime. Nearly all of it can be mended at the server
    /// while a pipeline runs, so it is tried again. The address is not told: it may hold a password.
    pub(crate) fn told(&self, queue: &str, place: &Place) -> ConnectorError {
        let all = self.error.to_string();
        let text: String = first(&all).chars().take(TOLD_MAX).collect();
        let help = self.help(&all, place).map_or_else(String::new, |help| format!("; {help}"));
        let told = format!("queue `{queue}`: Redis: {text}{help}");
        match self.error.kind() {
            ErrorKind::InvalidClientConfig if !all.contains("sentinel node") => {
                ConnectorError::permanent(told)
            }
            _ => ConnectorError::transient(told),
        }
    }

    /// Whether another connection may do better.
    pub(crate) fn is_of_connection(&self) -> bool {
        let error = &self.error;
        // A master that became a replica is to be looked for anew; one that asks for a password now
        // gets it on a new connection.
        let new = ["READONLY", "MASTERDOWN", "NOAUTH", "WRONGPASS"];
        error.is_unrecoverable_error()
            || error.is_timeout()
            || error.is_io_error()
            || error.code().is_some_and(|code| new.contains(&code))
            || self.is_of_protocol()
    }

    /// Whether the server has closed the connection because of what was written.
    pub(crate) fn is_of_protocol(&self) -> bool {
        self.error.detail().is_some_and(|detail| detail.contains("Protocol error"))
    }

    /// Whether a script has found that an RSMQ queue is not there.
    pub(crate) fn is_no_queue(&self) -> bool {
        self.error.code() == Some("NOQUEUE")
    }

    /// What to do about it, if that can be said.
    fn help(&self, text: &str, place: &Place) -> Option<String> {
        let own = match self.error.kind() {
            ErrorKind::AuthenticationFailed => return Some(password(place)),
            ErrorKind::MasterNameNotFoundBySentinel => {
                "the Sentinels know no master of this name: change `master` in `sentinel`"
            }
            _ if is_of_rights(text) => return Some(rights(text, &place.user())),
            _ => match by_text(text, place).or_else(|| self.by_connection(place)) {
                Some(own) => own,
                None if self.connecting => "check `url`",
                None => return None,
            },
        };
        Some(own.to_owned())
    }

    fn by_connection(&self, place: &Place) -> Option<&'static str> {
        let error = &self.error;
        if error.is_connection_refusal() {
            return Some("is the server up, and `url` right?");
        }
        if error.is_timeout() && self.connecting {
            return Some(match place.is_tls() {
                true => {
                    "check host and port in `url`: does the server speak TLS there? If not, \
                         begin it with `redis:`"
                }
                false => "check host and port in `url`",
            });
        }
        if error.is_io_error() && self.connecting && !place.is_tls() {
            return Some("check `url`: if the server wants TLS, begin it with `rediss:`");
        }
        // A connection that stood: nothing in the file is wrong.
        (error.is_io_error() && !self.connecting).then_some("the connection is made again")
    }
}

/// What texts mean. Inside the errors of scripts and batches the code of what went wrong stands there.
const TEXTS: [(&str, &str); 12] = [
    (
        "WRONGTYPE",
        "a value of another type is at a key of the queue: change `stream` or `queue`, or remove \
         that key",
    ),
    ("NOAUTH", "the server asks for a password: write `redis://user:password@host` in `url`"),
    ("MISCONF", "the server cannot write to its disk: make room there"),
    ("OOM", "the server is at its `maxmemory`: raise it, or make room"),
    (
        "sentinel node",
        "no Sentinel answers at `url`: with `sentinel` it is a Sentinel's address; for a server \
         alone remove `sentinel`",
    ),
    (
        "cluster support disabled",
        "the server is no node of a Cluster: remove `cluster`, or change `url`",
    ),
    (
        "DB index is out of range",
        "change the database, the number at the end of `url`: the server has as many as its \
         `databases` says",
    ),
    (
        "SELECT is not allowed in cluster mode",
        "a Cluster has only the database 0: remove the number at the end of `url`",
    ),
    ("failed to lookup address", "check the host in `url`: nothing of this name is known"),
    (
        "certificate",
        "check `tls`: `ca` is who signed the server's certificate, `certificate` and `key` are \
         shown to it",
    ),
    ("READONLY", "the server is a replica: name its master in `url`, or set `sentinel`"),
    (
        "unknown command",
        "no Redis server that has it answers at `url`; for a Sentinel's address set `sentinel`",
    ),
];

/// What a server has said, without what the client puts around it: that of a batch tells one for each
/// command, a script's says where in it.
fn first(text: &str) -> &str {
    let batch = text.strip_prefix("Pipeline failure").and_then(|rest| rest.split_once("error: "));
    let one = batch.and_then(|(_, rest)| rest.split([')', ']']).next()).unwrap_or(text);
    one.split(" script: ").next().unwrap_or(one)
}

fn by_text(text: &str, place: &Place) -> Option<&'static str> {
    let of_cluster = ["Moved", "CLUSTERDOWN", "ClusterDown", "CROSSSLOT", "CrossSlot"];
    if !place.cluster && of_cluster.iter().any(|code| text.starts_with(code)) {
        return Some(
            "the server is a node of a Cluster: set `cluster: true` of a `redis_stream`, or \
             change `url`",
        );
    }
    TEXTS.iter().find(|(part, _)| text.contains(part)).map(|(_, help)| *help)
}

fn password(place: &Place) -> String {
    let sentinel = match place.sentinel {
        Some(_) => ", and those in `sentinel`",
        None => "",
    };
    format!("check user and password in `url`{sentinel}")
}

fn is_of_rights(text: &str) -> bool {
    ["NOPERM", "NoPerm", "user executing the script"].iter().any(|part| text.contains(part))
}

/// What a user's access list lacks.
fn rights(text: &str, user: &str) -> String {
    let named = text.split_once("run the '").and_then(|(_, rest)| rest.split_once('\''));
    let commands = match named {
        Some((command, _)) => vec![command.to_owned()],
        None if text.contains("can't run") => commands_at(text),
        None => Vec::new(),
    };
    let give = |what: &str, how: &str| {
        format!("the access list of user `{user}` lacks {what}: `ACL SETUSER {user} {how}`")
    };
    let quoted: Vec<String> = commands.iter().map(|command| format!("`{command}`")).collect();
    let lacking = |what: &str| give(&format!("{what} {}", quoted.join(", ")), &all("+", &commands));
    match &commands[..] {
        [command] if text.contains("on the key") => {
            give(&format!("the command `{command}`, or that key"), &format!("+{command} ~KEY"))
        }
        [_] => lacking("the command"),
        [] if text.contains("channel") => give("the queue's channel", "&CHANNEL"),
        [] if text.contains("key") => give("a key of the queue", "~KEY"),
        [] => give("a command of Brigade's scripts", "+COMMAND"),
        _ => lacking("one of the commands"),
    }
}

/// Words with something before each.
fn all(before: &str, words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{before}{word}")).collect();
    words.join(" ")
}
