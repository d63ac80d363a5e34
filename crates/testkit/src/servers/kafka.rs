use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::keeper::Keeper;
use super::{cached, free_port, used};

/// A small heap and a quick start.
const JAVA: [&str; 5] = [
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
];
/// What Maven has to fetch.
const POM: &str = include_str!("kafka-pom.xml");

/// A Kafka server of one node (KRaft). It needs Java 17; Maven fetches everything else, once, into
/// the user's cache directory.
#[derive(Debug)]
pub struct Kafka {
    /// Dropped first: the server writes into the directory.
    keeper: Keeper,
    directory: tempfile::TempDir,
    records: PathBuf,
    jars: PathBuf,
    port: u16,
    /// The ports for TLS, and for SASL over TLS, if it listens on them.
    secured: Option<(u16, u16)>,
    /// After how many milliseconds without a heartbeat it is considered gone.
    session: u16,
}

/// Short, since tests kill brokers and wait for that.
const SESSION: u16 = 1000;
/// Kafka's default.
const STEADY_SESSION: u16 = 9000;
/// For a server that nobody kills: nobody waits for its session to end, and no machine stalls for
/// that long.
const SHARED_SESSION: u16 = 60_000;
/// Kafka's default, for sessions of some seconds.
const HEARTBEAT_MAX: u16 = 2000;

impl Kafka {
    /// Starts one and waits until it listens.
    ///
    /// # Panics
    /// Java or Maven is not installed, or it does not listen within three minutes.
    pub fn start() -> Self {
        Self::start_with(None, None, SESSION)
    }

    /// Starts one that stays the leader of its partitions on a machine that is always busy, for
    /// example with benchmarks and builds; after a kill it takes longer to be back.
    ///
    /// # Panics
    /// As [`start`](Kafka::start).
    pub fn start_steady() -> Self {
        Self::start_with(None, None, STEADY_SESSION)
    }

    /// Starts one that keeps its records in this directory. It is a [steady](Kafka::start_steady)
    /// one.
    ///
    /// # Panics
    /// As [`start`](Kafka::start).
    pub fn start_in(records: &Path) -> Self {
        Self::start_with(None, Some(records), STEADY_SESSION)
    }

    /// Starts one that also listens for TLS and for SASL over TLS: PLAIN and SCRAM-SHA-256 with the
    /// user `alice` and the password `secret`, and OAUTHBEARER with unsigned tokens. It is a
    /// [steady](Kafka::start_steady) one.
    ///
    /// # Panics
    /// As [`start`](Kafka::start); or `openssl` is not installed.
    pub fn start_secured() -> Self {
        Self::start_with(Some((free_port(), free_port())), None, STEADY_SESSION)
    }

    fn start_with(secured: Option<(u16, u16)>, records: Option<&Path>, session: u16) -> Self {
        if secured.is_none() {
            used("kafka");
        }
        let directory = tempfile::tempdir().expect("a directory can be made");
        let records = records.unwrap_or(directory.path()).join("logs");
        let (port, keeper) = (free_port(), Keeper::default());
        let kafka = Self { directory, records, jars: jars(), port, secured, session, keeper };
        if secured.is_some() {
            kafka.make_certificate();
        }
        let settings = kafka.settings(free_port());
        std::fs::write(kafka.path("server.properties"), settings).expect("it can be written");
        let mut format = kafka.java();
        format.args(["kafka.tools.StorageTool", "format", "--config"]);
        format.arg(kafka.path("server.properties")).args(["--cluster-id", &cluster_id()]);
        if secured.is_some() {
            format.args(["--add-scram", "SCRAM-SHA-256=[name=alice,password=secret]"]);
        }
        let formatted = format.output().expect("java is installed");
        assert!(formatted.status.success(), "{}", String::from_utf8_lossy(&formatted.stderr));
        kafka.restart();
        kafka
    }

    /// The one shared by all tests of a process that do not kill it. It is even
    /// [steadier](Kafka::start_steady): a broker that considers itself gone is reported to no
    /// client, and clients that no supervisor restarts do not recover from that.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        used("kafka");
        SHARED.get_or_init(|| Self::start_with(None, None, SHARED_SESSION))
    }

    /// Its address, as `bootstrap.servers` takes it.
    pub fn servers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Its address for TLS, if it was started secured.
    pub fn tls_servers(&self) -> Option<String> {
        used("kafka, tls");
        self.secured.map(|(port, _)| format!("127.0.0.1:{port}"))
    }

    /// Its address for SCRAM over TLS, if it was started secured.
    pub fn scram_servers(&self) -> Option<String> {
        used("kafka, scram");
        self.secured.map(|(_, port)| format!("127.0.0.1:{port}"))
    }

    /// Its address for SASL PLAIN over TLS, if it was started secured.
    pub fn plain_servers(&self) -> Option<String> {
        used("kafka, sasl plain");
        self.secured.map(|(_, port)| format!("127.0.0.1:{port}"))
    }

    /// Its address for OAUTHBEARER over TLS, if it was started secured.
    pub fn oauthbearer_servers(&self) -> Option<String> {
        used("kafka, oauthbearer");
        self.secured.map(|(_, port)| format!("127.0.0.1:{port}"))
    }

    /// The file with the first records of a topic's partition.
    pub fn records_of(&self, topic: &str, partition: u32) -> PathBuf {
        self.records.join(format!("{topic}-{partition}")).join("00000000000000000000.log")
    }

    /// The file with the certificate that it presents.
    pub fn certificate(&self) -> PathBuf {
        self.path("certificate.pem")
    }

    /// Gives the user `alice` another password for SCRAM. Open connections stay open.
    ///
    /// # Panics
    /// It does not run, or was not started secured.
    pub fn set_password(&self, password: &str) {
        let mut tool = self.java();
        tool.args(["kafka.admin.ConfigCommand", "--bootstrap-server", &self.servers()]);
        tool.args(["--alter", "--entity-type", "users", "--entity-name", "alice", "--add-config"]);
        tool.arg(format!("SCRAM-SHA-256=[password={password}]"));
        let done = tool.output().expect("java is installed");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Kills it, if it runs.
    ///
    /// # Panics
    /// It cannot be killed.
    pub fn kill(&self) {
        self.keeper.kill();
    }

    /// Whether it has ended by itself, as it does when it cannot write its records.
    pub fn has_ended(&self) -> bool {
        self.keeper.has_ended()
    }

    /// Kills it, starts it again on the same port with its data, and waits until it listens.
    ///
    /// # Panics
    /// As [`start`](Kafka::start).
    pub fn restart(&self) {
        self.kill();
        let mut server = self.java();
        server.arg("kafka.Kafka").arg(self.path("server.properties"));
        let secured = self.secured.into_iter().flat_map(<[u16; 2]>::from);
        let ports: Vec<u16> = secured.chain([self.port]).collect();
        let connects = |port: &u16| TcpStream::connect(("127.0.0.1", *port)).is_ok();
        let listens = || ports.iter().all(connects);
        self.keeper.start(&server, "-KILL", &self.path("server.log"), listens);
    }

    fn java(&self) -> Command {
        let mut java = Command::new("java");
        java.args(JAVA).arg("-cp").arg(self.jars.join("*"));
        java
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn settings(&self, controller: u16) -> String {
        let (port, logs, session) = (self.port, &self.records, self.session);
        let heartbeat = HEARTBEAT_MAX.min(session / 5);
        let pem = self.path("server.pem");
        let listen = |(tls, sasl)| {
            format!(
                ",SSL://127.0.0.1:{tls},SASL_SSL://127.0.0.1:{sasl}\n\
                 ssl.keystore.type=PEM\n\
                 ssl.keystore.location={}\n\
                 sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,OAUTHBEARER\n\
                 listener.name.sasl_ssl.plain.sasl.jaas.config=\
                 org.apache.kafka.common.security.plain.PlainLoginModule required \
                 user_alice=\"secret\";\n\
                 listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=\
                 org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
                 listener.name.sasl_ssl.oauthbearer.sasl.jaas.config=\
                 org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
                 unsecuredLoginStringClaim_sub=\"broker\";",
                pem.display()
            )
        };
        let more = self.secured.map(listen).unwrap_or_default();
        format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{more}\n\
             controller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,\
             SSL:SSL,SASL_SSL:SASL_SSL\n\
             log.dirs={}\n\
             broker.session.timeout.ms={session}\n\
             broker.heartbeat.interval.ms={heartbeat}\n\
             controller.quorum.election.timeout.ms=200\n\
             controller.quorum.fetch.timeout.ms=500\n\
             auto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=4\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=4\n\
             group.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\n\
             group.consumer.min.heartbeat.interval.ms=200\n\
             group.consumer.heartbeat.interval.ms=200\n\
             group.consumer.min.session.timeout.ms=1000\n\
             group.consumer.session.timeout.ms=60000\n",
            logs.display()
        )
    }

    /// A certificate of its own, which clients also use as the authority's.
    fn make_certificate(&self) {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]);
        openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]);
        openssl.arg("-keyout").arg(self.path("key.pem")).arg("-out").arg(self.certificate());
        let made = openssl.output().expect("openssl is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let read = |path| std::fs::read_to_string(path).expect("it was written");
        let both = read(self.path("key.pem")) + &read(self.certificate());
        std::fs::write(self.path("server.pem"), both).expect("it can be written");
    }
}

/// 16 random bytes in Kafka's notation.
fn cluster_id() -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    (0..21).map(|_| char::from(DIGITS[fastrand::usize(..DIGITS.len())])).chain(['A']).collect()
}

/// The directory of the server's jars, which are fetched if they are not there.
fn jars() -> PathBuf {
    cached("kafka", POM, |directory| {
        let pom = directory.join("pom.xml");
        std::fs::write(&pom, POM).expect("it can be written");
        let mut maven = Command::new("mvn");
        maven.args(["-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime"]);
        maven.arg("-f").arg(&pom).arg(format!("-DoutputDirectory={}", directory.display()));
        let done = maven.output().expect("Maven (`mvn`) is installed");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    })
}
