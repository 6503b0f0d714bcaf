//! Once its buffers have grown, neither direction of the codec allocates: not a record, not a message.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use flow_common::ipfix::collector::{self, Batch, Limits, TailHash};
use flow_common::ipfix::exporter::{JoinedParts, STREAM_LIMIT, Session, Settings};
use flow_common::record::{Content, Cut, Extended, Family, Head, PerNode, Tail};

/// The system's, counting.
struct Counting;

thread_local! {
    /// Of this thread alone: that of the test runner allocates when it likes.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: every call is the system allocator's.
#[expect(unsafe_code, reason = "the test counts allocations")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROUNDS: usize = 3;
const RECORDS: u16 = 2000;

fn session(content: Content) -> Session {
    let settings = Settings {
        domain: 1,
        content,
        extended: true,
        accounting: false,
        message_limit: STREAM_LIMIT,
        template_resend: None,
    };
    let mut session = Session::new(settings);
    session.begin(1);
    session
}

fn head(number: u16) -> Head {
    Head { src_port: number, src_addr: [10, 0, 0, 1].into(), dst_addr: [10, 0, 0, 2].into(), ..Head::default() }
}

fn tail() -> Tail {
    Tail { src_pod: "client-7d8f9c6b5-00001".into(), src_namespace: "shop".into(), ..Tail::default() }
}

/// What each round allocates.
fn rounds(mut round: impl FnMut()) -> [usize; ROUNDS] {
    std::array::from_fn(|_| {
        let before = ALLOCATIONS.get();
        round();
        ALLOCATIONS.get() - before
    })
}

#[test]
fn nothing_is_allocated_for_a_record() {
    let encoded = tail().to_encoded(Family::V4, &mut Cut::default());
    let mut agent = session(Content::Agent);
    let templates = agent.bytes().to_vec();
    let mut messages = Vec::new();
    let sent = rounds(|| {
        agent.clear();
        for number in 0..RECORDS {
            agent.push(&head(number), &encoded, &Extended::default()).expect("small");
        }
        agent.finish();
        messages.clear();
        messages.extend_from_slice(agent.bytes());
    });
    assert_eq!(sent[1..], [0, 0], "encoding");

    let mut aggregator = session(Content::Joined);
    let sent = rounds(|| {
        aggregator.clear();
        for number in 0..RECORDS {
            let parts = JoinedParts {
                head: &head(number),
                tails: [encoded.bytes(), encoded.bytes()],
                http: "",
                per_node: &PerNode::default(),
                labels: [r#"{"app":"web"}"#, "{}"],
                extended: &Extended::default(),
            };
            aggregator.push_joined(&parts).expect("small");
        }
        aggregator.finish();
    });
    assert_eq!(sent[1..], [0, 0], "encoding joined records");

    for foreign in [false, true] {
        let (templates, messages) = if foreign { foreign_messages() } else { (templates.clone(), messages.clone()) };
        let mut session = collector::Session::new(Limits::STREAM, TailHash::new(7));
        let mut batch = Batch::new(usize::from(RECORDS));
        session.decode(&templates, 0, 1, &mut batch).expect("templates");
        let received = rounds(|| {
            batch.clear();
            session.decode(&messages, 0, 1, &mut batch).expect("messages");
            assert_eq!(batch.records().len(), usize::from(RECORDS));
        });
        assert_eq!(received[1..], [0, 0], "decoding, foreign: {foreign}");
    }
}

/// Records of addresses, port and a fixed name.
fn foreign_messages() -> (Vec<u8>, Vec<u8>) {
    let header = |length: u16| [0, 10, (length >> 8) as u8, length as u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1];
    let template: [u8; 24] = [0, 2, 0, 24, 1, 44, 0, 4, 0, 8, 0, 4, 0, 12, 0, 4, 0, 7, 0, 2, 0, 2, 0, 8];
    let length = 20 + 18 * RECORDS;
    let mut messages = header(length).to_vec();
    messages.extend([1, 44]);
    messages.extend((length - 16).to_be_bytes());
    for number in 0..RECORDS {
        messages.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        messages.extend(number.to_be_bytes());
        messages.extend(u64::from(number).to_be_bytes());
    }
    ([&header(40)[..], &template].concat(), messages)
}
