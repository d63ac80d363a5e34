//! How an error of Redis is reported: which queue, what was wrong, and what to change.

use std::error::Error;
use std::fmt;

use brigade_core::connector::ConnectorError;
use redis::{ErrorKind, RedisError};

use crate::script::commands_at;
use crate::server::Place;

/// How much of a server's error is reported, in characters.
const TOLD_MAX: usize = 400;

/// An error, and whether it came up while connecting.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: RedisError,
    pub(crate) connecting: bool,
}

impl Failure {
    /// What it means, for people and for the runtime. Nearly all errors can be fixed on the server
    /// while a pipeline runs, so they are retried. The address is left out: it may hold a password.
    pub(crate) fn told(&self, queue: &str, place: &Place) -> ConnectorError {
        let all = self.error.to_string();
        let text: String = first(&all).chars().take(TOLD_MAX).collect();
        let help = self.help(&all, place).map_or_else(String::new, |help| format!("; {help}"));
        let told = format!("queue `{queue}`: Redis: {text}{help}");
        if self.is_no_group() {
            return ConnectorError::transient(told).caused_by(Behind::NoGroup);
        }
        match self.error.kind() {
            ErrorKind::InvalidClientConfig if !all.contains("sentinel node") => {
                ConnectorError::permanent(told)
            }
            _ if !self.connecting && self.error.code().is_none() => {
                ConnectorError::transient(told).caused_by(Behind::Unanswered)
            }
            _ => ConnectorError::transient(told),
        }
    }

    /// Whether a new connection may do better.
    pub(crate) fn is_of_connection(&self) -> bool {
        let error = &self.error;
        // A master that became a replica has to be looked up again; a server that now asks for a
        // password gets it on a new connection.
        let new = ["READONLY", "MASTERDOWN", "NOAUTH", "WRONGPASS"];
        error.is_unrecoverable_error()
            || error.is_timeout()
            || error.is_io_error()
            || new.iter().any(|code| self.says(code))
            || self.is_of_protocol()
    }

    /// Whether an answer did not come in time.
    pub(crate) fn is_late(&self) -> bool {
        self.error.is_timeout() && !self.connecting
    }

    /// Whether the server has closed the connection because of what was written.
    pub(crate) fn is_of_protocol(&self) -> bool {
        self.error.detail().is_some_and(|detail| detail.contains("Protocol error"))
    }

    /// Whether a script found that an RSMQ queue does not exist.
    pub(crate) fn is_no_queue(&self) -> bool {
        self.error.code() == Some("NOQUEUE")
    }

    /// Whether the server is out of memory.
    pub(crate) fn is_full(&self) -> bool {
        self.says("OOM")
    }

    fn is_no_group(&self) -> bool {
        let no_key =
            |text: &str| text.starts_with("no such key") || text.contains("-ERR no such key");
        self.says("NOGROUP") || self.error.detail().is_some_and(no_key)
    }

    /// Whether this is the code of the server's error. Before Redis 7 the code of an error in a
    /// script is only found within its text.
    pub(crate) fn says(&self, code: &str) -> bool {
        let within = |text: &str| text.contains(&format!(" -{code} "));
        self.error.code() == Some(code) || self.error.detail().is_some_and(within)
    }

    /// What to do about it, if anything can be said.
    fn help(&self, text: &str, place: &Place) -> Option<String> {
        let own = match self.error.kind() {
            ErrorKind::AuthenticationFailed => return Some(password(place)),
            ErrorKind::MasterNameNotFoundBySentinel => {
                "the Sentinels know no master of this name: change `master` in `sentinel`"
            }
            _ if self.is_of_rights() => return Some(rights(text, &place.user())),
            _ => match self
                .by_code()
                .or_else(|| of_cluster(text, place))
                .or_else(|| self.by_text(text))
                .or_else(|| self.by_connection(place))
            {
                Some(own) => own,
                None if self.connecting => "check `url`",
                None => return None,
            },
        };
        Some(own.to_owned())
    }

    fn is_of_rights(&self) -> bool {
        let within = |text: &str| text.contains("user executing the script");
        self.says("NOPERM") || self.error.detail().is_some_and(within)
    }

    fn by_code(&self) -> Option<&'static str> {
        CODES.iter().find(|(code, _)| self.says(code)).map(|(_, help)| *help)
    }

    /// Texts of errors with a code of their own are not searched: they contain names, and a name
    /// may contain anything.
    fn by_text(&self, text: &str) -> Option<&'static str> {
        let is_free = self.error.code().is_none_or(|code| code == "ERR");
        let mut texts = TEXTS.iter().filter(|_| is_free);
        texts.find(|(part, _)| text.contains(part)).map(|(_, help)| *help)
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
        // The connection was established: nothing in the file is wrong.
        (error.is_io_error() && !self.connecting).then_some("the connection is made again")
    }
}

/// The cause of an error, for code that has to distinguish it from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    /// Someone has deleted a group, or its stream.
    NoGroup,
    /// The request may have been carried out.
    Unanswered,
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoGroup => "the stream or its group is not there",
            Self::Unanswered => "no answer came",
        })
    }
}

impl Error for Behind {}

impl Behind {
    fn is(self, error: &ConnectorError) -> bool {
        error.source().and_then(<dyn Error>::downcast_ref) == Some(&self)
    }
}

/// Whether the error says that someone has deleted a group, or its stream.
pub(crate) fn is_no_group(error: &ConnectorError) -> bool {
    Behind::NoGroup.is(error)
}

/// Whether it is unknown what became of the request.
pub(crate) fn is_unanswered(error: &ConnectorError) -> bool {
    Behind::Unanswered.is(error)
}

/// What to do, by error code.
const CODES: [(&str, &str); 5] = [
    (
        "WRONGTYPE",
        "a value of another type is at a key of the queue: change `stream` or `queue`, or remove \
         that key",
    ),
    ("NOAUTH", "the server asks for a password: write `redis://user:password@host` in `url`"),
    ("MISCONF", "the server cannot write to its disk: make room there"),
    ("OOM", "the server is at its `maxmemory`: raise it, or make room"),
    ("READONLY", "the server is a replica: name its master in `url`, or set `sentinel`"),
];

/// What to do, by a part of the text.
const TEXTS: [(&str, &str); 8] = [
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
    (
        "hash value is not an integer",
        "the field `totalrecv` at the key `NAMESPACE:QUEUE:Q` is no count: set it to 0",
    ),
    (
        "unknown command",
        "no Redis server that has it answers at `url`; for a Sentinel's address set `sentinel`",
    ),
];

/// A server's error, without its place in a script.
fn first(text: &str) -> &str {
    text.split(" script: ").next().unwrap_or(text)
}

fn of_cluster(text: &str, place: &Place) -> Option<&'static str> {
    let codes = ["Moved", "CLUSTERDOWN", "ClusterDown", "CROSSSLOT", "CrossSlot"];
    let is_of_cluster = codes.iter().any(|code| text.starts_with(code));
    (!place.cluster && is_of_cluster).then_some(
        "the server is a node of a Cluster: set `cluster: true` of a `redis_stream`, or change `url`",
    )
}

fn password(place: &Place) -> String {
    let sentinel = match place.sentinel {
        Some(_) => ", and those in `sentinel`",
        None => "",
    };
    format!("check user and password in `url`{sentinel}")
}

/// What a user's access list is missing.
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

/// The words, each with a prefix.
fn all(before: &str, words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{before}{word}")).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error as a server sends it.
    fn said(text: &str) -> Failure {
        let said = redis::parse_redis_value(text.as_bytes()).and_then(redis::Value::extract_error);
        Failure { error: said.expect_err("it is an error"), connecting: false }
    }

    #[test]
    fn a_replica_that_refuses_a_script_is_left_also_before_redis_7() {
        let refused = "READONLY You can't write against a read only replica.";
        for (error, is_of_connection) in [
            (format!("-{refused}\r\n"), true),
            (
                format!("-ERR Error running script (call to f_0): @user_script:1: -{refused}\r\n"),
                true,
            ),
            ("-ERR Error running script (call to f_0): @user_script:1: -OOM no\r\n".into(), false),
        ] {
            assert_eq!(said(&error).is_of_connection(), is_of_connection, "{error}");
        }
    }
}
