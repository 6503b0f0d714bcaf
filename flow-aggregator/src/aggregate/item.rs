//! One decoded record, and its way into the flow it belongs to: numbers by the rules, names merged and never emptied.

use super::{
    flow::{Exporter, Flow, Numbers},
    key::{Addr, Client, Key},
    rules::Outcome,
    tails::{TailId, Tails},
};

/// One decoded record, of this family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'a, A> {
    pub(super) key: Key<A>,
    pub(super) client: Client<A>,
    pub(super) hash: u32,
    pub(super) exporter: Exporter,
    pub(super) numbers: Numbers,
    pub(super) names: Names<'a>,
}

/// The strings of a record, as they stand in the read buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'a> {
    /// Without HTTP transactions, which differ by record.
    pub(super) tail: &'a [u8],
    pub(super) tail_hash: u64,
    /// HTTP transactions, or nothing.
    pub(super) http: &'a [u8],
}

/// Numbers and names of a record of the same connection into the flow. `held` is the record's tail if it was looked up
/// already; the flow becomes one more user of it.
#[inline]
pub(super) fn take<A: Addr>(
    flow: &mut Flow<A>,
    side: usize,
    item: &Item<'_, A>,
    held: Option<TailId>,
    tails: &mut Tails,
) -> Outcome {
    let known = &flow.sides[side];
    let fresh = !known.is_known();
    let counts = fresh || flow.adds(side, &item.numbers);
    let same_names = !fresh && known.tail_hash == item.names.tail_hash;
    // A later record's names stand before the earlier one's; a repeat's only where there were none.
    let later = fresh || item.numbers.end > known.end || (item.numbers.end == known.end && counts);
    let tail = match same_names {
        true => None,
        false if fresh || known.is_replaced_by(&item.numbers) => Some(match held {
            Some(tail) => tails.share(tail),
            None => tails.keep(item.names.tail, item.names.tail_hash),
        }),
        false => Some(renamed(known.tail, later, item.names.tail, tails)),
    };
    let client = item.client.is_known() && !flow.client.is_known();
    let http = http_text(item.names.http).and_then(|http| flow.http_with(http));
    let named = tail.is_some_and(|tail| tail != known.tail);
    if !(counts || named || client || http.is_some()) {
        tail.into_iter().for_each(|tail| tails.release(tail));
        return Outcome::Repeated;
    }
    let outcome = flow.take(side, item.exporter, &item.numbers);
    if let Some(tail) = tail {
        let side = &mut flow.sides[side];
        tails.release(std::mem::replace(&mut side.tail, tail));
        if later {
            side.tail_hash = item.names.tail_hash;
        }
    }
    if client {
        flow.client = item.client;
    }
    if let Some(http) = http {
        flow.rare.get_or_insert_default().http = http;
    }
    outcome
}

/// HTTP transactions that can be read.
fn http_text(bytes: &[u8]) -> Option<&str> {
    if bytes.is_empty() { None } else { std::str::from_utf8(bytes).ok() }
}

/// The side's names after a record whose names are others; never emptied.
#[cold]
fn renamed(known: TailId, later: bool, new: &[u8], tails: &mut Tails) -> TailId {
    let old = tails.bytes(known).to_vec();
    if later { tails.merge(new, &old) } else { tails.merge(&old, new) }
}
