//! The servers: HTTP/1.1, a sink for bulk transfers, and echoes over TCP, UDP and SCTP.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use anyhow::{Context, Result};
use lab::topology::{BULK, DNS, HTTP, Protocol, SCTP, ServicePort, TALK};

use crate::socket;

/// Serves until it is killed.
pub(crate) fn run() -> Result<()> {
    accept(HTTP, http)?;
    accept(BULK, sink)?;
    accept(TALK, echo)?;
    // A kernel without SCTP has no clients for it either; the tests say that they skip it.
    if lab::traffic::kernel_has_sctp() {
        accept(SCTP, echo)?;
    }
    let datagrams = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, DNS.target)).context("cannot listen on the UDP port")?;
    writeln!(io::stdout(), "{}", lab::traffic::READY)?;
    let mut buffer = vec![0; 65_536];
    loop {
        // A refused answer of a client that has gone shows up here; the next question does not suffer from it.
        if let Ok((length, client)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(&buffer[..length], client);
        }
    }
}

fn accept(port: ServicePort, serve: fn(TcpStream) -> io::Result<()>) -> Result<()> {
    let listener: TcpListener = socket::listen_on(port.protocol, port.target)
        .with_context(|| format!("cannot listen on the {} port {}", port.protocol.name(), port.target))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                if port.protocol == Protocol::Tcp {
                    let _ = stream.set_nodelay(true);
                }
                // A client that broke off is the client's to report.
                let _ = serve(stream);
            });
        }
    });
    Ok(())
}

/// Answers `GET /bytes/N` with N bytes, until the client asks to close or closes.
fn http(stream: TcpStream) -> io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        while reader.read_line(&mut request)? > 0 && !request.ends_with("\r\n\r\n") {}
        let Some(path) = request.split(' ').nth(1) else { return Ok(()) };
        let length = path.strip_prefix("/bytes/").and_then(|length| length.parse().ok()).unwrap_or(0);
        let last = request.to_ascii_lowercase().contains("connection: close");
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\nConnection: {}\r\n\r\n",
            if last { "close" } else { "keep-alive" }
        )
        .into_bytes();
        answer.resize(answer.len() + length, b'x');
        writer.write_all(&answer)?;
        if last {
            return Ok(());
        }
    }
}

/// Takes all there is and answers with its length.
fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 262_144];
    let mut total: u64 = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&total.to_be_bytes()),
            length => total += length as u64,
        }
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}
