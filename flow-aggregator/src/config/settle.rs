//! What no key of flow-aggregator.conf can check by itself: bounds, and keys that belong together.

use super::{Collector, Config, LogFormat};
use flow_common::{
    config::{Document, Unfit},
    daemon::check_level,
    net::Protocol,
};
use std::{ops::RangeInclusive, path::Path, time::Duration};

const TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);
const FEWEST_FLOWS: u32 = 1_024;
const MESSAGE_SIZES: RangeInclusive<u32> = 512..=65_535;

/// Checks, and sets what an old file means by what it leaves out.
pub(super) fn settle(config: &mut Config, document: &mut Document) {
    timeouts(config, document);
    if config.max_flows < FEWEST_FLOWS {
        document.refuse("maxFlows", Unfit::new(format!("must be at least {FEWEST_FLOWS}")));
    }
    for (path, number) in [
        ("maxSessions", config.max_sessions),
        ("sinkQueue", config.sink_queue),
        ("flowLogger.maxSize", config.logger_max_size),
    ] {
        if number == 0 {
            document.refuse(path, Unfit::new("must be at least 1"));
        }
    }
    if let Err(error) = check_level(&config.log_level) {
        document.refuse("logLevel", Unfit::new(error));
    }
    collector(config, document);
    logger(config, document);
    api(config, document);
    agents_tls(config, document);
    super::clickhouse::settle(config, document);
}

fn timeouts(config: &Config, document: &mut Document) {
    for (path, timeout) in [
        ("activeFlowRecordTimeout", config.active_timeout),
        ("inactiveFlowRecordTimeout", config.inactive_timeout),
        ("correlationTimeout", config.correlation_timeout),
        ("flowCollector.templateRefreshTimeout", config.template_refresh),
    ] {
        if !TIMEOUTS.contains(&timeout) {
            document.refuse(path, Unfit::new("must be from 1s to 24h"));
        }
    }
    if !config.session_idle.is_zero() && !TIMEOUTS.contains(&config.session_idle) {
        document.refuse("sessionIdleTimeout", Unfit::new("must be 0s, or from 1s to 24h"));
    }
    if config.correlation_timeout >= config.inactive_timeout {
        let reason = "must be less than inactiveFlowRecordTimeout, after which a flow is not waited for any more";
        document.refuse("correlationTimeout", Unfit::new(reason));
    }
}

fn collector(config: &mut Config, document: &mut Document) {
    let path = "flowCollector.address";
    let unread = document.is_refused(path);
    let (named, told) = (config.collector.address.is_some(), document.has("flowCollector.enable"));
    if named && !told && document.is_written(path, "externalFlowCollectorAddr") {
        // The versions that call it so have no switch: the address is the switch.
        config.collector_enable = true;
    } else if named && !told {
        document.warn(path, Unfit::new("has no effect without flowCollector.enable: true"));
    }
    if config.collector_enable && config.collector == Collector::default() && !unread {
        document.refuse(path, Unfit::new("must be set, as flowCollector.enable is true"));
    }
    if config.max_message != 0 && !MESSAGE_SIZES.contains(&config.max_message) {
        document.refuse("flowCollector.maxIPFIXMsgSize", Unfit::new("must be 0, or from 512 to 65535"));
    }
    collector_tls(config, document);
}

fn collector_tls(config: &Config, document: &mut Document) {
    let pair =
        [("flowCollector.tls.cert", &config.collector_tls_cert), ("flowCollector.tls.key", &config.collector_tls_key)];
    belong_together(pair, document);
    if config.collector_tls_version.raised {
        document.warn("flowCollector.tls.minVersion", Unfit::new("is raised to VersionTLS12"));
    }
    if config.collector_tls {
        let udp = config.collector.address.as_ref().is_some_and(|address| address.protocol == Protocol::Udp);
        if udp {
            document
                .refuse("flowCollector.tls.enable", Unfit::new("cannot be true over udp: write tcp in the address"));
        }
        return;
    }
    for path in ["flowCollector.tls.ca", "flowCollector.tls.cert", "flowCollector.tls.serverName"] {
        if document.has(path) && !document.is_refused(path) {
            document.warn(path, Unfit::new("has no effect without flowCollector.tls.enable: true"));
        }
    }
}

fn logger(config: &Config, document: &mut Document) {
    if !config.logger_enable {
        return;
    }
    if config.logger_path == Path::new("-") {
        for path in ["flowLogger.maxSize", "flowLogger.maxBackups", "flowLogger.maxAge", "flowLogger.rotateAfter"] {
            if document.has(path) {
                document.warn(path, Unfit::new("has no effect on the standard output (flowLogger.path)"));
            }
        }
    }
    if config.logger_pretty && config.logger_format == LogFormat::Json && document.has("flowLogger.prettyPrint") {
        document.warn("flowLogger.prettyPrint", Unfit::new("has an effect on CSV alone (flowLogger.recordFormat)"));
    }
}

fn api(config: &Config, document: &mut Document) {
    if config.api_least.raised {
        document.warn("apiServer.tlsMinVersion", Unfit::new("is raised to VersionTLS12"));
    }
    belong_together([("apiServer.tlsCert", &config.api_cert), ("apiServer.tlsKey", &config.api_key)], document);
}

/// A certificate and its key.
fn belong_together(pair: [(&str, &Option<std::path::PathBuf>); 2], document: &mut Document) {
    let [(cert, has_cert), (key, has_key)] = pair.map(|(path, file)| (path, file.is_some()));
    match (has_cert, has_key) {
        (true, false) => document.refuse(cert, Unfit::new(format!("needs {key} beside it"))),
        (false, true) => document.refuse(key, Unfit::new(format!("needs {cert} beside it"))),
        _ => {}
    }
}

/// The three files of TLS belong together.
fn agents_tls(config: &Config, document: &mut Document) {
    let files = [("tls.ca", &config.tls_ca), ("tls.cert", &config.tls_cert), ("tls.key", &config.tls_key)];
    let tls = config.transport.0 == Protocol::Tls;
    let missing: Vec<&str> = files.iter().filter(|(_, file)| file.is_none()).map(|(path, _)| *path).collect();
    if tls && !missing.is_empty() {
        let missing = missing.join(", ");
        let reason = format!(
            "{missing} must be set, as agents send by tls (aggregatorTransportProtocol); `flow-aggregator certs init DIR` makes the files"
        );
        document.refuse("tls", Unfit::new(reason));
    }
    for (path, _) in files.into_iter().filter(|(_, file)| !tls && file.is_some()) {
        document.warn(path, Unfit::new("has no effect: agents do not send by tls (aggregatorTransportProtocol)"));
    }
}
