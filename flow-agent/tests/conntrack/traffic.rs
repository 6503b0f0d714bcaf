//! Connections of every kind that the router tracks differently, and many short ones.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Barrier, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lab::{Lab, Side, patience};

/// Nothing here takes so long; a packet that was lost must not hold a test up for ever.
const STUCK: Duration = Duration::from_secs(20);

/// Answers each connection's first bytes, then closes it.
pub(crate) fn serve_tcp(side: Side, addr: &str) {
    serve(side, addr, |addr| TcpListener::bind(addr), |listener| listener.incoming().flatten().for_each(answer));
}

/// Opens a socket on a side, and serves there as long as the process lives. The thread is in no other namespace, which could not go then.
fn serve<T>(
    side: Side,
    addr: &str,
    bind: impl FnOnce(&str) -> std::io::Result<T> + Send + 'static,
    work: impl FnOnce(T) + Send + 'static,
) {
    let addr = addr.to_owned();
    let (ready, is_ready) = mpsc::channel();
    side.inside(move || {
        let socket = bind(&addr).expect("a free port");
        ready.send(()).expect("somebody waits");
        work(socket);
    });
    is_ready.recv().expect("bound");
}

/// What goes wrong with one connection is seen at its other end.
fn answer(mut stream: TcpStream) {
    let _ = stream.set_read_timeout(Some(STUCK));
    let mut question = [0; 256];
    if stream.read(&mut question).is_ok_and(|length| length > 0) {
        let _ = stream.write_all(&[7; 1_000]);
    }
}

/// Answers each datagram.
pub(crate) fn serve_udp(side: Side, addr: &str) {
    serve(
        side,
        addr,
        |addr| UdpSocket::bind(addr),
        |socket| {
            let mut datagram = [0; 256];
            while let Ok((length, from)) = socket.recv_from(&mut datagram) {
                let _ = socket.send_to(&datagram[..length], from);
            }
        },
    );
}

/// One connection: a question, its answer, the end.
fn ask(addr: SocketAddr) {
    let mut stream = TcpStream::connect_timeout(&addr, STUCK * patience()).expect("a server");
    stream.set_read_timeout(Some(STUCK * patience())).expect("a socket");
    stream.write_all(&[1; 100]).expect("a server");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    assert_eq!(answer.len(), 1_000);
}

/// So many connections from a side, one after the other.
pub(crate) fn tcp(side: Side, addr: &str, count: usize) -> JoinHandle<()> {
    let addr: SocketAddr = addr.parse().expect("an address");
    side.inside(move || (0..count).for_each(|_| ask(addr)))
}

/// Connections from the router itself.
pub(crate) fn tcp_here(addr: &str, count: usize) {
    let addr: SocketAddr = addr.parse().expect("an address");
    (0..count).for_each(|_| ask(addr));
}

/// Four datagrams and their answers over one pair of ports.
pub(crate) fn udp(side: Side, from: &str, to: &str) {
    let (from, to) = (from.to_owned(), to.to_owned());
    let talk = side.inside(move || {
        let socket = UdpSocket::bind(from.as_str()).expect("a free port");
        socket.connect(to.as_str()).expect("an address");
        socket.set_read_timeout(Some(STUCK * patience())).expect("a socket");
        for _ in 0..4 {
            socket.send(&[3; 64]).expect("a way");
            socket.recv(&mut [0; 64]).expect("an answer");
        }
    });
    talk.join().expect("answers");
}

/// Flows whose first two datagrams come from two threads at one moment, as a resolver's two questions do.
pub(crate) fn clashes(side: Side, to: &str, count: usize) {
    let to = to.to_owned();
    let work = side.inside(move || {
        for port in (20_000..).take(count) {
            // One of its own: a port that is used again makes no new connection.
            let socket = UdpSocket::bind(("0.0.0.0", port)).expect("a free port");
            socket.connect(to.as_str()).expect("an address");
            let (socket, barrier) = (Arc::new(socket), Arc::new(Barrier::new(2)));
            let threads = [(); 2].map(|()| {
                let (socket, barrier) = (Arc::clone(&socket), Arc::clone(&barrier));
                std::thread::spawn(move || {
                    barrier.wait();
                    // What the first one's refusal says is of no interest.
                    let _ = socket.send(b"question");
                })
            });
            threads.into_iter().for_each(|thread| thread.join().expect("sent"));
        }
    });
    work.join().expect("sent");
}

/// One of each kind: seventeen connections.
pub(crate) fn every_kind(lab: &Lab) {
    let (client, server) = (lab.client(), lab.server());
    for addr in ["0.0.0.0:8080", "0.0.0.0:8081", "[::]:8090"] {
        serve_tcp(server, addr);
    }
    for addr in ["0.0.0.0:5000", "0.0.0.0:5555", "[::]:5001"] {
        serve_udp(server, addr);
    }
    for (addr, count) in [("10.0.2.2:8080", 3), ("10.96.0.10:80", 3), ("10.0.2.2:8081", 2), ("[fd02::2]:8090", 2)] {
        tcp(client, addr, count).join().expect("connections");
    }
    udp(client, "0.0.0.0:0", "10.0.2.2:5000");
    // Two connections: only questions are in the zone, so that the answers make another.
    udp(client, "0.0.0.0:0", "10.0.2.2:5555");
    udp(client, "[::]:0", "[fd02::2]:5001");
    client.run("ping", "-q -c 3 -i 0.2 10.0.2.2");
    client.run("ping", "-q -c 2 -i 0.2 fd02::2");
    tcp_here("10.0.2.2:8080", 1);
}

/// How many those are.
pub(crate) const EVERY_KIND: usize = 17;
