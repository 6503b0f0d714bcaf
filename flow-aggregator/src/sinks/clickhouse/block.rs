//! Rows on their way from the table's columns to a server.

use bytes::Bytes;

/// Rows as they go over the wire: a block without what stands around it.
#[derive(Clone, Debug)]
pub struct Block {
    /// Columns, in frames where they are compressed.
    pub body: Bytes,
    /// Whether they are.
    pub compressed: bool,
    /// How many.
    pub rows: usize,
}
