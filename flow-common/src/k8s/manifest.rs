//! From the text of a manifest to reduced objects.
//!
//! Takes YAML (any number of documents) or JSON (any number of values) as `kubectl` writes it, lists included; gives
//! the objects of the kinds that are kept, each with its line, and how many of other kinds were passed over. Reads no
//! file.

use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::object::{Kind, Object};
use super::reduce::{self, Strings, ValueError};

/// What a manifest holds.
#[derive(Debug, Default)]
pub struct Manifest {
    /// The objects of kinds that are kept, and the line on which the document of each begins.
    pub objects: Vec<(Object, u64)>,
    /// How many objects are of other kinds.
    pub ignored: usize,
}

/// How a manifest is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// YAML.
    Yaml,
    /// JSON.
    Json,
}

/// Why a manifest is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// The line, from 1.
    pub line: u64,
    /// What is wrong there.
    pub wrong: Wrong,
}

/// What can be wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It is not written as its syntax demands, or a field is not of its type.
    #[error("{0}")]
    Syntax(String),
    /// It is no Kubernetes object.
    #[error("no Kubernetes object: apiVersion and kind are wanted")]
    NoKind,
    /// It is an object without a name.
    #[error("the {0} has no metadata.name")]
    NoName(Kind),
    /// A field's value is none.
    #[error("{object}: {error}")]
    Value {
        /// Kind, namespace and name.
        object: String,
        /// Which value of which field.
        error: ValueError,
    },
}

/// Reads a manifest.
pub fn parse(text: &str, syntax: Syntax, strings: &mut Strings) -> Result<Manifest, ManifestError> {
    let mut manifest = Manifest::default();
    let documents = match syntax {
        Syntax::Yaml => yaml_documents(text),
        Syntax::Json => json_values(text)?,
    };
    for document in documents {
        for raw in document.raw_objects()? {
            match raw {
                Some(raw) => manifest.objects.push((document.reduce(&raw, strings)?, document.line)),
                None => manifest.ignored += 1,
            }
        }
    }
    Ok(manifest)
}

/// One document of a file.
struct Document<'a> {
    text: &'a str,
    syntax: Syntax,
    /// Of the file, on which `text` begins.
    line: u64,
}

/// What says of which kind an object is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a Kubernetes object")]
struct Head {
    api_version: Option<String>,
    kind: Option<String>,
}

/// The heads of a list's objects.
#[derive(Deserialize)]
struct Heads {
    items: Option<Vec<Head>>,
}

/// An object as the API has it; none for one of a kind that is not kept.
type Raw = Option<RawObject>;

enum RawObject {
    Pod(Box<core::Pod>),
    Namespace(Box<core::Namespace>),
    Node(Box<core::Node>),
    Service(Box<core::Service>),
    EndpointSlice(Box<discovery::EndpointSlice>),
}

impl Head {
    /// The kind; none if it is not kept.
    fn kept(&self) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| self.is(kind.api_version(), &kind.to_string()))
    }

    /// The kind of which it is a list, such as "PodList".
    fn kept_list(&self) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| self.is(kind.api_version(), &format!("{kind}List")))
    }

    fn is(&self, api_version: &str, kind: &str) -> bool {
        self.api_version.as_deref() == Some(api_version) && self.kind.as_deref() == Some(kind)
    }
}

impl<'a> Document<'a> {
    fn raw_objects(&self) -> Result<Vec<Raw>, ManifestError> {
        let Some(head) = self.read(PhantomData::<Option<Head>>)? else { return Ok(Vec::new()) };
        if head.api_version.is_none() || head.kind.is_none() {
            return Err(self.wrong(Wrong::NoKind));
        }
        if head.is("v1", "List") {
            let heads = self.read(PhantomData::<Heads>)?.items.unwrap_or_default();
            let kinds: Vec<Option<Kind>> = heads.iter().map(Head::kept).collect();
            return self.read(ListSeed(&kinds));
        }
        match (head.kept(), head.kept_list()) {
            (Some(kind), _) => Ok(vec![self.read(ObjectSeed(Some(kind)))?]),
            (None, Some(kind)) => {
                let count = self.read(PhantomData::<Heads>)?.items.map_or(0, |items| items.len());
                self.read(ListSeed(&vec![Some(kind); count]))
            }
            (None, None) => Ok(vec![None]),
        }
    }

    fn reduce(&self, raw: &RawObject, strings: &mut Strings) -> Result<Object, ManifestError> {
        let object = match raw {
            RawObject::Pod(pod) => reduce::pod(pod, strings).map(|pod| Object::Pod(pod.into())),
            RawObject::Node(node) => reduce::node(node, strings).map(|node| Object::Node(node.into())),
            RawObject::Service(service) => {
                reduce::service(service, strings).map(|service| Object::Service(service.into()))
            }
            RawObject::Namespace(namespace) => Ok(Object::Namespace(reduce::namespace(namespace, strings).into())),
            RawObject::EndpointSlice(slice) => {
                reduce::endpoint_slice(slice, strings).map(|slice| Object::EndpointSlice(slice.into()))
            }
        };
        let object = object.map_err(|error| {
            let line = self.line_with(&error);
            ManifestError { line, wrong: Wrong::Value { object: raw.name(), error } }
        })?;
        let reference = object.reference();
        if reference.name.is_empty() { Err(self.wrong(Wrong::NoName(reference.kind))) } else { Ok(object) }
    }

    fn read<S: DeserializeSeed<'a>>(&self, seed: S) -> Result<S::Value, ManifestError> {
        match self.syntax {
            Syntax::Yaml => {
                let read = |yaml: serde_saphyr::Deserializer<'a, '_>| seed.deserialize(yaml);
                let value = serde_saphyr::with_deserializer_from_str_with_options(self.text, yaml_options(), read);
                value.map_err(|error| self.yaml_error(&error))
            }
            Syntax::Json => {
                let value = seed.deserialize(&mut serde_json::Deserializer::from_str(self.text));
                value.map_err(|error| json_error(self.line, &error))
            }
        }
    }

    fn wrong(&self, wrong: Wrong) -> ManifestError {
        ManifestError { line: self.line, wrong }
    }

    fn yaml_error(&self, error: &serde_saphyr::Error) -> ManifestError {
        let line = self.line + error.location().map_or(0, |location| location.line().saturating_sub(1));
        let said = match error.without_snippet() {
            serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
                format!("the key {key} stands there twice")
            }
            other => other.to_string(),
        };
        // The first line says what, and then where in the document, which is not where in the file.
        let said = said.lines().next().unwrap_or_default();
        let said = said.rsplit_once(" at line ").map_or(said, |(said, _)| said);
        ManifestError { line, wrong: Wrong::Syntax(said.to_owned()) }
    }

    /// The line of a value: the first on which it stands with its field's name, else the first on which it stands.
    fn line_with(&self, error: &ValueError) -> u64 {
        let key = error.field.rsplit('.').next().unwrap_or_default();
        let line = |with: &str| {
            (0..).zip(self.text.lines()).find(|(_, line)| line.contains(with) && line.contains(&error.value))
        };
        let found = line(&format!("{key}:")).or_else(|| line(""));
        self.line + found.map_or(0, |(number, _)| number)
    }
}

impl RawObject {
    /// Kind, namespace and name, for what is said of its values.
    fn name(&self) -> String {
        let (kind, metadata) = match self {
            Self::Pod(pod) => (Kind::Pod, &pod.metadata),
            Self::Namespace(namespace) => (Kind::Namespace, &namespace.metadata),
            Self::Node(node) => (Kind::Node, &node.metadata),
            Self::Service(service) => (Kind::Service, &service.metadata),
            Self::EndpointSlice(slice) => (Kind::EndpointSlice, &slice.metadata),
        };
        let name = metadata.name.as_deref().unwrap_or_default();
        match metadata.namespace.as_deref() {
            None | Some("") => format!("{kind} {name}"),
            Some(namespace) => format!("{kind} {namespace}/{name}"),
        }
    }
}

/// Reads one object of this kind; passes over one of none.
struct ObjectSeed(Option<Kind>);

impl<'de> DeserializeSeed<'de> for ObjectSeed {
    type Value = Raw;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Raw, D::Error> {
        Ok(Some(match self.0 {
            Some(Kind::Pod) => RawObject::Pod(Deserialize::deserialize(from)?),
            Some(Kind::Namespace) => RawObject::Namespace(Deserialize::deserialize(from)?),
            Some(Kind::Node) => RawObject::Node(Deserialize::deserialize(from)?),
            Some(Kind::Service) => RawObject::Service(Deserialize::deserialize(from)?),
            Some(Kind::EndpointSlice) => RawObject::EndpointSlice(Deserialize::deserialize(from)?),
            None => {
                IgnoredAny::deserialize(from)?;
                return Ok(None);
            }
        }))
    }
}

/// Reads the `items` of a list, of which each is of the kind that stands at its place here.
struct ListSeed<'k>(&'k [Option<Kind>]);

impl<'de> DeserializeSeed<'de> for ListSeed<'_> {
    type Value = Vec<Raw>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Vec<Raw>, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ListSeed<'_> {
    type Value = Vec<Raw>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Raw>, A::Error> {
        let mut items = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" && !self.0.is_empty() {
                items = map.next_value_seed(ItemsSeed(self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(items)
    }
}

struct ItemsSeed<'k>(&'k [Option<Kind>]);

impl<'de> DeserializeSeed<'de> for ItemsSeed<'_> {
    type Value = Vec<Raw>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Vec<Raw>, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ItemsSeed<'_> {
    type Value = Vec<Raw>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kubernetes objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Raw>, A::Error> {
        let mut raw = Vec::with_capacity(self.0.len());
        for kind in self.0 {
            raw.push(
                items
                    .next_element_seed(ObjectSeed(*kind))?
                    .ok_or_else(|| A::Error::invalid_length(raw.len(), &self))?,
            );
        }
        Ok(raw)
    }
}

/// The documents of a YAML file, without empty ones. A line that begins with `---` ends a document wherever it
/// stands, even in a block of text.
fn yaml_documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut line, mut here, mut empty) = (0, 1, 0, true);
    for (number, content) in (1..).zip(text.split_inclusive('\n')) {
        let marker =
            content.strip_prefix("---").is_some_and(|rest| rest.trim_end().is_empty() || rest.starts_with([' ', '\t']));
        if marker && !empty {
            documents.push(Document { text: text.get(start..here).unwrap_or_default(), syntax: Syntax::Yaml, line });
            empty = true;
        }
        // Comments and markers before a document are no part of it, so that it begins on its first line.
        let nothing = content.trim_start_matches("---").trim_start();
        if empty && !(nothing.is_empty() || nothing.starts_with('#')) {
            (start, line, empty) = (here, number, false);
        }
        here += content.len();
    }
    if !empty {
        documents.push(Document { text: text.get(start..).unwrap_or_default(), syntax: Syntax::Yaml, line });
    }
    documents
}

/// The values of a JSON file.
fn json_values(text: &str) -> Result<Vec<Document<'_>>, ManifestError> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let (mut documents, mut start) = (Vec::new(), 0);
    while let Some(value) = values.next() {
        value.map_err(|error| json_error(1, &error))?;
        let all = text.get(start..values.byte_offset()).unwrap_or_default();
        let before = text.len() - text.get(start..).unwrap_or_default().trim_start().len();
        let line = 1 + text.get(..before).unwrap_or_default().matches('\n').count() as u64;
        documents.push(Document { text: all.trim_start(), syntax: Syntax::Json, line });
        start = values.byte_offset();
    }
    Ok(documents)
}

fn json_error(first_line: u64, error: &serde_json::Error) -> ManifestError {
    let said = error.to_string();
    let told = format!(" at line {} column {}", error.line(), error.column());
    let said = said.strip_suffix(&told).unwrap_or(&said).to_owned();
    ManifestError { line: first_line + (error.line() as u64).saturating_sub(1), wrong: Wrong::Syntax(said) }
}

/// Room for a cluster's Pods in one list; the crate's own bounds are for configuration files.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 50_000_000,
            max_nodes: 25_000_000,
        },
        with_snippet: false,
    }
}

impl ManifestError {
    /// The error of bytes that are no UTF-8.
    pub(super) fn not_text(content: &[u8], error: std::str::Utf8Error) -> Self {
        let before = content.get(..error.valid_up_to()).unwrap_or_default();
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count() as u64;
        Self { line, wrong: Wrong::Syntax("not UTF-8".to_owned()) }
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.wrong)
    }
}

impl std::error::Error for ManifestError {}

#[cfg(test)]
mod tests;
