//! What is lost on the way, by exporter, in simulated time.

use crate::aggregate::{
    Aggregate, Source,
    testing::{EPOCH, external, settings},
};
use crate::input::SessionId;
use flow_common::{
    ipfix::exporter::{self, Session},
    record::Content,
};

/// Datagrams of one record each.
fn datagrams(domain: u32, count: u32) -> Vec<Vec<u8>> {
    let mut session = Session::new(exporter::Settings {
        domain,
        content: Content::Agent,
        extended: true,
        accounting: false,
        message_limit: 1_400,
        template_resend: Some(600),
    });
    session.begin(EPOCH);
    let mut all = Vec::new();
    for second in 1..=count {
        session.push_record(&external(second, second.into())).unwrap();
        session.finish();
        all.extend(session.messages().map(<[u8]>::to_vec));
        session.clear();
    }
    all
}

#[test]
fn losses_are_known_by_exporter_and_outlive_their_session() {
    let mut table = Aggregate::new(&settings());
    let of = |table: &Aggregate, domain| {
        let source = Source { addr: [192, 0, 2, 7].into(), domain };
        table.losses().find(|(known, _)| *known == Some(source)).map_or(0, |(_, records)| records)
    };
    let open = |table: &mut Aggregate| {
        let id = SessionId::next();
        table.open(id, [192, 0, 2, 7].into(), true);
        id
    };
    // What holds templates holds no record.
    let sent = [datagrams(1, 6), datagrams(2, 6)];
    let first = sent[0].len() - 6;
    let session = open(&mut table);
    for (which, now) in [(0, 0), (1, 0), (4, 1), (2, 2), (5, 7)] {
        for one in &sent {
            let at = if which == 0 { 0 } else { first + which - 1 };
            table.feed(session, &one[at], now).unwrap();
        }
    }
    // Of the second, third and fourth the second came late, and the third never.
    assert_eq!((of(&table, 1), of(&table, 2), table.received().lost, table.received().late), (1, 1, 2, 2));
    // A gap at the end shows with the end of the session.
    let session = open(&mut table);
    for at in [0, first, first + 3] {
        table.feed(session, &sent[0][at], 8).unwrap();
    }
    assert_eq!(of(&table, 1), 1);
    table.close(session);
    assert_eq!((of(&table, 1), of(&table, 2), table.received().lost), (3, 1, 4));
}
