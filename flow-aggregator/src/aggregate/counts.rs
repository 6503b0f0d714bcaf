//! What the table counts, in plain numbers: each with its name and help as a metric.

use flow_common::ipfix::collector;

/// Declares plain numbers with the name and the help of each as a metric.
macro_rules! numbers {
    ($(#[$meta:meta])* $group:ident: $number:ty { $($(#[doc = $help:literal])+ $field:ident = $metric:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $group {
            $($(#[doc = $help])+ pub $field: $number,)+
        }

        impl $group {
            /// Name, help and value of each.
            pub fn rows(&self) -> impl Iterator<Item = (&'static str, &'static str, $number)> {
                [$(($metric, concat!($($help),+).trim_ascii(), self.$field)),+].into_iter()
            }
        }
    };
}

numbers! {
    /// What happened since the start.
    Counts: u64 {
        /// Flow records received
        received = "records_received",
        /// Records that added nothing to what was known
        repeated = "records_repeated",
        /// Records of a third exporter of a flow that does not say which side it is
        surplus = "records_surplus",
        /// Flows that began
        begun = "flows_begun",
        /// Flows that went on from a tombstone
        revived = "flows_revived",
        /// Flows that ended because another began under the same key
        reused = "flows_reused",
        /// Exporters that began to count a flow anew
        restarted = "flows_restarted",
        /// Flows exported without the other half that they needed
        uncorrelated = "flows_uncorrelated",
        /// Records exported: joined, or handed on in mode Proxy
        exported = "records_exported",
        /// Flows that had to leave a full table early
        evicted = "flows_evicted",
        /// Tombstones that had to leave early
        tombstones_evicted = "tombstones_evicted",
        /// Agents' records of accounting for which there was no room
        accounting_refused = "accounting_refused",
        /// Strings too long for a record, which lost their end
        texts_cut = "texts_cut",
        /// Labels and HTTP transactions too long for a record, which lost entries
        objects_cut = "objects_cut",
    }
}

numbers! {
    /// What sessions received since the start.
    Received: u64 {
        /// IPFIX messages
        messages = "messages",
        /// Messages that could not be parsed
        malformed = "messages_malformed",
        /// Messages that came behind a later one
        late = "messages_late",
        /// Flow records of other senders than agents
        foreign = "records_foreign",
        /// Records of sampled packets, which are no flows
        sampled = "records_sampled",
        /// Records that do not say between whom, which are no flows
        keyless = "records_keyless",
        /// Records that the sequence numbers say were sent and that did not come
        lost = "records_lost",
        /// Exporters whose sequence numbers began anew
        restarts = "sequence_restarts",
        /// Templates beyond a session's limits
        templates_refused = "templates_refused",
        /// Sets of data whose template is not there
        missing_templates = "sets_without_template",
        /// Sets with an id that has no meaning
        unknown_sets = "sets_unknown",
    }
}

impl Received {
    pub(super) fn of(counters: &collector::Counters) -> Received {
        Received {
            messages: counters.messages,
            malformed: counters.malformed,
            late: counters.late,
            foreign: counters.foreign,
            sampled: counters.sampled,
            keyless: counters.keyless,
            lost: counters.lost,
            restarts: counters.restarts,
            templates_refused: counters.templates_refused,
            missing_templates: counters.missing_templates,
            unknown_sets: counters.unknown_sets,
        }
    }
}

numbers! {
    /// How much there is at a moment.
    Fill: usize {
        /// Flows in the table
        flows = "flows",
        /// Tombstones of flows that are over
        tombstones = "tombstones",
        /// Distinct sets of names
        tails = "names",
        /// Addresses of Nodes that agents reported
        node_addrs = "node_addresses",
    }
}
