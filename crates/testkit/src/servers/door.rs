use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// One direction of a connection: passes on what comes from the first stream to the second, until
/// it ends.
pub(super) type Way = Box<dyn FnOnce(&TcpStream, &TcpStream) -> io::Result<()> + Send>;

/// A proxy before a server on this machine: clients that connect to it are connected to the server,
/// until they are cut off.
#[derive(Debug)]
pub struct Door {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The server's port.
    port: u16,
    closed: AtomicBool,
    within: Mutex<Within>,
}

#[derive(Debug, Default)]
struct Within {
    /// How many of the next clients are turned away.
    unwelcome: u32,
    connections: Vec<Weak<Connection>>,
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Door {
    /// Opens one before the server on this port, on a port of its own.
    ///
    /// # Panics
    /// No port is free.
    pub fn open(server: u16) -> Self {
        let pass = || -> Way {
            Box::new(|mut from: &TcpStream, mut to: &TcpStream| {
                io::copy(&mut from, &mut to).map(drop)
            })
        };
        Self::open_with(server, move |_| [pass(), pass()])
    }

    /// Opens one with other ways, from the client and back; `ways` is given the door's port.
    pub(super) fn open_with(server: u16, ways: impl Fn(u16) -> [Way; 2] + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let (closed, within) = (AtomicBool::default(), Mutex::default());
        let shared = Arc::new(Shared { port: server, closed, within });
        let here = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if here.closed.load(Ordering::Relaxed) {
                    return;
                }
                // A client that is already gone, or does not reach the server, will try again.
                let _ = client.and_then(|client| here.admit(client, || ways(port)));
            }
        });
        Self { port, shared }
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Breaks every connection in both directions, wherever it is in its traffic, and turns away
    /// this many of the next clients.
    pub fn cut(&self, unwelcome: u32) {
        let mut within = self.shared.within.lock();
        within.unwelcome = unwelcome;
        within.connections.drain(..).filter_map(|one| one.upgrade()).for_each(|one| one.cut());
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        self.cut(0);
        // The listener waits for a client: this lets it end.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn admit(&self, client: TcpStream, ways: impl FnOnce() -> [Way; 2]) -> io::Result<()> {
        // Held until the connection is registered, so that no cut misses it.
        let mut within = self.within.lock();
        if within.unwelcome > 0 {
            within.unwelcome -= 1;
            return Ok(());
        }
        let server = TcpStream::connect(("127.0.0.1", self.port))?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let connection = Arc::new(Connection { client, server });
        within.connections.retain(|one| one.strong_count() > 0);
        within.connections.push(Arc::downgrade(&connection));
        let [there, back] = ways();
        let asking = Arc::clone(&connection);
        std::thread::spawn(move || {
            let _ = there(&asking.client, &asking.server);
            asking.cut();
        });
        std::thread::spawn(move || {
            let _ = back(&connection.server, &connection.client);
            connection.cut();
        });
        Ok(())
    }
}

impl Connection {
    fn cut(&self) {
        for end in [&self.client, &self.server] {
            // It may be broken already.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// A server that sends back what it receives.
    fn echo() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                std::thread::spawn(move || io::copy(&mut &client, &mut &client));
            }
        });
        port
    }

    fn is_answered(mut client: &TcpStream) -> bool {
        let mut answer = [0; 4];
        let asked = client.write_all(b"ping").and_then(|()| client.read_exact(&mut answer));
        asked.is_ok() && &answer == b"ping"
    }

    #[test]
    fn it_passes_on_until_it_is_cut_and_turns_some_away() {
        let door = Door::open(echo());
        let connect = || TcpStream::connect(("127.0.0.1", door.port())).unwrap();
        let first = connect();
        assert!(is_answered(&first) && is_answered(&first));
        door.cut(2);
        assert!(!is_answered(&first));
        assert_eq!([(); 3].map(|()| is_answered(&connect())), [false, false, true]);
    }
}
