//! A session of the native protocol: one query at a time.
//!
//! Takes a connected stream; gives answers to questions and inserts blocks that are encoded already. A session that
//! failed is of no more use.

use super::{
    block::Block,
    error::Error,
    login::Login,
    packet::{self, Packet, REVISION},
    wire::{Answer, Fault, LONGEST_ANSWER, Reader},
};
use bytes::{Buf, BytesMut};
use flow_common::net::ByteStream;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A server that knows us.
#[derive(Debug)]
pub(super) struct Native {
    stream: ByteStream,
    received: BytesMut,
    revision: u64,
}

impl Native {
    /// Introduces us.
    pub(super) async fn open(stream: ByteStream, login: &Login) -> Result<Native, Error> {
        let mut native = Native { stream, received: BytesMut::new(), revision: REVISION };
        native.send(&[&packet::hello(&login.database, &login.user, &login.password)]).await?;
        match native.next(false).await? {
            Packet::Hello { revision } => native.revision = revision,
            _ => return Err(foreign(Fault::Malformed("no greeting"))),
        }
        Ok(native)
    }

    /// Runs a statement, whose answer is columns of strings or integers.
    pub(super) async fn ask(&mut self, sql: &str) -> Result<Answer, Error> {
        self.send(&[&packet::query(self.revision, sql, &[], false)]).await?;
        let mut answer = Answer::default();
        loop {
            match self.next(false).await? {
                Packet::Data(block) => answer.rows.extend(block.rows),
                Packet::End => return Ok(answer),
                Packet::Hello { .. } | Packet::Exception(_) | Packet::Other => {}
            }
        }
    }

    /// Inserts a block, whose columns `into` names.
    pub(super) async fn insert(&mut self, into: &str, block: &Block, settings: &[(&str, &str)]) -> Result<(), Error> {
        let compressed = block.compressed;
        let sql = format!("{into} VALUES");
        self.send(&[&packet::query(self.revision, &sql, settings, compressed)]).await?;
        // The server names the columns that it wants.
        while !matches!(self.next(compressed).await?, Packet::Data(_)) {}
        let (begin, end) = (packet::begin_data(compressed), packet::no_data(compressed));
        self.send(&[&begin, &block.body, &end]).await?;
        while self.next(compressed).await? != Packet::End {}
        Ok(())
    }

    async fn send(&mut self, parts: &[&[u8]]) -> Result<(), Error> {
        let sent = async {
            for part in parts {
                self.stream.write_all(part).await?;
            }
            self.stream.flush().await
        };
        let Err(error) = sent.await else { return Ok(()) };
        // What it said before it hung up says more than that it did.
        match self.next(false).await {
            Err(refused @ Error::Refused(_)) => Err(refused),
            _ => Err(error.into()),
        }
    }

    /// The next packet, if it is no refusal.
    async fn next(&mut self, compressed: bool) -> Result<Packet, Error> {
        loop {
            let mut from = Reader::new(&self.received);
            match packet::read(&mut from, self.revision, compressed) {
                Ok(packet) => {
                    let used = self.received.len() - from.len();
                    self.received.advance(used);
                    match packet {
                        Packet::Exception(refusal) => return Err(refusal.into()),
                        packet => return Ok(packet),
                    }
                }
                Err(Fault::Short) if self.received.len() < LONGEST_ANSWER => {}
                Err(fault) => return Err(foreign(fault)),
            }
            self.received.reserve(16 << 10);
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it").into());
            }
        }
    }
}

fn foreign(fault: Fault) -> Error {
    Error::Foreign { fault, native: true }
}
