//! The clients.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use lab::topology::Protocol;
use lab::traffic::{Outcome, Report};
use rustix::io::Errno;

use crate::socket::{self, PATIENCE};

/// What one client does.
#[derive(Args)]
pub(crate) struct Options {
    #[arg(value_enum)]
    kind: Kind,
    /// The client's own address and port.
    #[arg(long)]
    from: SocketAddr,
    /// Whom it asks.
    #[arg(long)]
    to: SocketAddr,
    /// How many requests and answers.
    #[arg(long, default_value_t = 1)]
    exchanges: u32,
    /// How many bytes an exchange carries: of the answer for HTTP, to the server for bulk, each way else.
    #[arg(long, default_value_t = 100)]
    bytes: u64,
    /// How long connecting may take.
    #[arg(long, default_value_t = 10_000)]
    patience_ms: u64,
    /// Stay connected: each line of standard input is a number of further exchanges, its end is the end.
    #[arg(long)]
    hold: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Requests on one connection, closed after the last.
    Http,
    /// One transfer, as fast as it goes.
    Bulk,
    /// Echoes over TCP.
    Tcp,
    /// Echoes over UDP.
    Udp,
    /// Echoes over SCTP.
    Sctp,
    /// Echoes over UDP, each from the next port.
    Flood,
    /// Sends over UDP, each time from the next port, and reads nothing.
    Datagrams,
    /// Connects and closes, each time from the next port.
    Connects,
    /// Begins to connect and turns away, each time from the next port.
    Syns,
    /// Only connects, and closes.
    Connect,
}

/// Does it and prints the report; with `hold`, a report that adds up after each line.
pub(crate) fn run(options: &Options) -> Result<()> {
    match options.kind {
        Kind::Udp => udp(options),
        Kind::Flood => flood(options),
        Kind::Datagrams => shower(options),
        Kind::Connects => connects(options),
        Kind::Syns => syns(options),
        Kind::Http => stream(options, Protocol::Tcp, http),
        Kind::Bulk => stream(options, Protocol::Tcp, bulk),
        Kind::Tcp => stream(options, Protocol::Tcp, echo),
        Kind::Sctp => stream(options, Protocol::Sctp, echo),
        Kind::Connect => stream(options, Protocol::Tcp, |_, _, _| Ok(())),
    }
}

type Exchange = fn(&mut TcpStream, &Options, &mut Report) -> Result<()>;

fn stream(options: &Options, protocol: Protocol, exchange: Exchange) -> Result<()> {
    let mut report = Report::new(protocol, options.from, options.to);
    let patience = Duration::from_millis(options.patience_ms);
    let mut connection = match socket::connect_from(protocol, options.from, options.to, patience) {
        Ok(connection) => connection,
        Err(error) => {
            report.outcome = match Errno::from_io_error(&error) {
                Some(Errno::CONNREFUSED) => Outcome::Refused,
                // The first is what an expired SO_SNDTIMEO makes of connect().
                Some(Errno::INPROGRESS | Errno::TIMEDOUT) => Outcome::Unanswered,
                _ => return Err(error).with_context(|| format!("cannot connect to {}", options.to)),
            };
            return print(&mut report);
        }
    };
    report.from = connection.local_addr()?;
    exchange(&mut connection, options, &mut report)?;
    if options.hold {
        print(&mut report)?;
        for line in io::stdin().lock().lines() {
            let further = Options { exchanges: line?.trim().parse()?, ..*options };
            exchange(&mut connection, &further, &mut report)?;
            print(&mut report)?;
        }
    }
    close(&mut connection)?;
    print(&mut report)
}

/// Says that there is no more and waits until the server has said so, too: all packets are through then but the last
/// acknowledgement.
fn close(connection: &mut TcpStream) -> Result<()> {
    // The server may have closed already, as HTTP's does.
    let _ = connection.shutdown(Shutdown::Write);
    match io::copy(connection, &mut io::sink()) {
        // SCTP has no half-closed state, and no word for the end of an association that is over before anybody reads.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        end => end.map(drop).context("waiting for the server's end of the connection"),
    }
}

fn http(connection: &mut TcpStream, options: &Options, report: &mut Report) -> Result<()> {
    for index in 1..=options.exchanges {
        let last = index == options.exchanges && !options.hold;
        let request = format!(
            "GET /bytes/{} HTTP/1.1\r\nHost: {}\r\nUser-Agent: lab\r\nConnection: {}\r\n\r\n",
            options.bytes,
            options.to,
            if last { "close" } else { "keep-alive" }
        );
        connection.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            connection.read_exact(&mut byte).context("the answer's head")?;
            answer.extend(byte);
        }
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "the server refused: {}", String::from_utf8_lossy(&answer));
        let body = io::copy(&mut Read::by_ref(connection).take(options.bytes), &mut io::sink())?;
        ensure!(body == options.bytes, "the answer has {body} bytes of {}", options.bytes);
        report.exchanges += 1;
        report.sent += request.len() as u64;
        report.received += answer.len() as u64 + body;
    }
    Ok(())
}

fn bulk(connection: &mut TcpStream, options: &Options, report: &mut Report) -> Result<()> {
    let sent = io::copy(&mut io::repeat(b'b').take(options.bytes), connection)?;
    connection.shutdown(Shutdown::Write)?;
    let mut arrived = [0; 8];
    connection.read_exact(&mut arrived).context("the server's count of bytes")?;
    ensure!(u64::from_be_bytes(arrived) == sent, "the server got {} bytes of {sent}", u64::from_be_bytes(arrived));
    report.exchanges += 1;
    report.sent += sent;
    report.received += 8;
    Ok(())
}

fn echo(connection: &mut TcpStream, options: &Options, report: &mut Report) -> Result<()> {
    let question = vec![b'e'; usize::try_from(options.bytes)?];
    let mut answer = question.clone();
    for _ in 0..options.exchanges {
        connection.write_all(&question)?;
        connection.read_exact(&mut answer).context("the echo")?;
        report.exchanges += 1;
        report.sent += options.bytes;
        report.received += options.bytes;
    }
    Ok(())
}

/// Datagrams are never repeated: the number that was sent is the number asked for.
fn udp(options: &Options) -> Result<()> {
    let socket = UdpSocket::bind(options.from).with_context(|| format!("cannot bind {}", options.from))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(options.to)?;
    let mut report = Report::new(Protocol::Udp, socket.local_addr()?, options.to);
    datagrams(&socket, options.exchanges, options.bytes, &mut report)?;
    if options.hold {
        print(&mut report)?;
        for line in io::stdin().lock().lines() {
            datagrams(&socket, line?.trim().parse()?, options.bytes, &mut report)?;
            print(&mut report)?;
        }
    }
    print(&mut report)
}

fn flood(options: &Options) -> Result<()> {
    let mut report = Report::new(Protocol::Udp, options.from, options.to);
    for offset in 0..u16::try_from(options.exchanges)? {
        // The kernel's own choice would use some ports twice.
        let port = options.from.port().checked_add(offset).context("too many ports")?;
        let socket = UdpSocket::bind(SocketAddr::new(options.from.ip(), port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(options.to)?;
        datagrams(&socket, 1, options.bytes, &mut report)?;
    }
    print(&mut report)
}

fn shower(options: &Options) -> Result<()> {
    /// Sockets that are kept open for the answers, which would be refused otherwise.
    const OPEN: usize = 512;
    let mut report = Report::new(Protocol::Udp, options.from, options.to);
    let datagram = vec![b'u'; usize::try_from(options.bytes)?];
    let mut sockets = VecDeque::with_capacity(OPEN);
    for offset in 0..u16::try_from(options.exchanges)? {
        let port = options.from.port().checked_add(offset).context("too many ports")?;
        let socket = UdpSocket::bind(SocketAddr::new(options.from.ip(), port))?;
        socket.send_to(&datagram, options.to)?;
        report.exchanges += 1;
        if sockets.len() == OPEN {
            sockets.pop_front();
        }
        sockets.push_back(socket);
    }
    print(&mut report)
}

fn connects(options: &Options) -> Result<()> {
    let mut report = Report::new(Protocol::Tcp, options.from, options.to);
    for offset in 0..u16::try_from(options.exchanges)? {
        let port = options.from.port().checked_add(offset).context("too many ports")?;
        let from = SocketAddr::new(options.from.ip(), port);
        let mut connection = socket::connect_from(Protocol::Tcp, from, options.to, PATIENCE)?;
        close(&mut connection)?;
        report.exchanges += 1;
    }
    print(&mut report)
}

fn syns(options: &Options) -> Result<()> {
    let mut report = Report::new(Protocol::Tcp, options.from, options.to);
    for offset in 0..u16::try_from(options.exchanges)? {
        let port = options.from.port().checked_add(offset).context("too many ports")?;
        socket::begin_from(SocketAddr::new(options.from.ip(), port), options.to)?;
        report.exchanges += 1;
    }
    print(&mut report)
}

fn datagrams(socket: &UdpSocket, exchanges: u32, bytes: u64, report: &mut Report) -> Result<()> {
    let question = vec![b'u'; usize::try_from(bytes)?];
    let mut answer = vec![0; 65_536];
    for _ in 0..exchanges {
        socket.send(&question)?;
        report.sent += bytes;
        let length = socket.recv(&mut answer).context("no answer to a datagram")?;
        report.exchanges += 1;
        report.received += length as u64;
    }
    Ok(())
}

fn print(report: &mut Report) -> Result<()> {
    report.ended_ms = lab::traffic::now_ms();
    writeln!(io::stdout(), "{}", serde_json::to_string(report)?)?;
    Ok(())
}
