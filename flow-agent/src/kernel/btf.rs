//! The types of the running kernel, read from its BTF: where a member of a structure lies, what an enumeration's value is, which
//! number a function has.
//!
//! Takes the bytes of `/sys/kernel/btf/vmlinux` and, on top of them, of a module's split BTF; gives plain numbers. Loads
//! nothing into the kernel. Whatever the bytes are, nothing here panics: what makes no sense is not found, or refused at the
//! beginning. Bit fields are not found: no caller needs one.

use std::io;
use std::path::Path;
use std::sync::Arc;

mod names;
mod section;
#[cfg(test)]
mod tests;

use names::Names;
use section::{Section, Type};

/// Where the kernel shows its types.
pub const FOLDER: &str = "/sys/kernel/btf";

/// How deep structures may lie in each other, and modifiers follow each other.
const DEPTH: usize = 16;

/// Why there are no types to read.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The kernel was built without.
    #[error("this kernel does not tell its types ({path}: {source}): it needs CONFIG_DEBUG_INFO_BTF")]
    Read {
        /// What was read.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not BTF of a version that is known, or damaged.
    #[error("the kernel's types cannot be read: {0}")]
    Malformed(&'static str),
}

/// A member of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Bytes from the structure's beginning.
    pub offset: u32,
    /// Bytes of the member itself.
    pub size: u32,
}

/// A function that programs can be attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its number, counted through from the kernel's own types.
    pub id: u32,
    /// Whether it is the module's, not the kernel's own.
    pub of_module: bool,
}

/// Name and value (its low 32 bits) of an enumeration.
pub type Value<'a> = (&'a [u8], u32);

/// What kind of type a name is looked up as: the numbers of `enum` BTF_KIND_*.
pub(crate) mod kind {
    pub(crate) const INT: u32 = 1;
    pub(crate) const POINTER: u32 = 2;
    pub(crate) const ARRAY: u32 = 3;
    pub(crate) const STRUCT: u32 = 4;
    pub(crate) const UNION: u32 = 5;
    pub(crate) const ENUM: u32 = 6;
    pub(crate) const TYPEDEF: u32 = 8;
    pub(crate) const VOLATILE: u32 = 9;
    pub(crate) const CONST: u32 = 10;
    pub(crate) const RESTRICT: u32 = 11;
    pub(crate) const FUNCTION: u32 = 12;
    pub(crate) const FUNCTION_PROTOTYPE: u32 = 13;
    pub(crate) const VARIABLE: u32 = 14;
    pub(crate) const DATA_SECTION: u32 = 15;
    pub(crate) const FLOAT: u32 = 16;
    pub(crate) const DECLARATION_TAG: u32 = 17;
    pub(crate) const TYPE_TAG: u32 = 18;
    pub(crate) const ENUM64: u32 = 19;
}

/// The types of the kernel and of one module at most.
#[derive(Debug)]
pub struct Btf {
    /// Its types are read once, whatever modules are looked at with them.
    kernel: Arc<Part>,
    module: Option<Part>,
}

/// The kernel's types, or a module's.
#[derive(Debug)]
struct Part {
    section: Section,
    names: Names,
}

impl Btf {
    /// Of the running kernel, and of a module if it is loaded and tells its types: where it is built in, its types are the
    /// kernel's own.
    pub fn of_kernel(module: Option<&str>) -> Result<Self, BtfError> {
        Self::parse(read("vmlinux")?, module.and_then(|name| read(name).ok()))
    }

    /// Of the same kernel, and of another module.
    pub fn with_module(&self, name: &str) -> Result<Self, BtfError> {
        Self::on(self.kernel.clone(), read(name).ok())
    }

    /// Of the bytes of the kernel's types and of a module's.
    pub fn parse(kernel: Vec<u8>, module: Option<Vec<u8>>) -> Result<Self, BtfError> {
        let section = Section::parse(kernel, 1, 0)?;
        let names = Names::of(&section, |offset| section.string(offset));
        Self::on(Arc::new(Part { section, names }), module)
    }

    fn on(kernel: Arc<Part>, module: Option<Vec<u8>>) -> Result<Self, BtfError> {
        let module = module.map(|bytes| {
            let base = &kernel.section;
            let section = Section::parse(bytes, base.end(), base.string_bytes())?;
            let names = Names::of(&section, |offset| base.string(offset).or_else(|| section.string(offset)));
            Ok(Part { section, names })
        });
        Ok(Self { module: module.transpose()?, kernel })
    }

    /// Where a member of a structure or union lies: `path` names one within the other, "proto.tcp.state", with an index where it
    /// is an array's, "tuplehash[1].tuple". Of several types with the name the first that has the member counts.
    pub fn member(&self, root: &str, path: &str) -> Option<Member> {
        let roots = self.named(root, &[kind::STRUCT, kind::UNION]);
        roots.into_iter().find_map(|root| self.member_of(root, path))
    }

    /// Bytes of a structure or union.
    pub fn size(&self, name: &str) -> Option<u32> {
        let id = *self.named(name, &[kind::STRUCT, kind::UNION]).first()?;
        self.size_of(id, DEPTH)
    }

    /// A value of an enumeration, its low 32 bits.
    pub fn value(&self, enumeration: &str, name: &str) -> Option<u32> {
        self.values(enumeration).into_iter().find_map(|(of, value)| (of == name.as_bytes()).then_some(value))
    }

    /// Names and values of an enumeration.
    pub fn values(&self, enumeration: &str) -> Vec<Value<'_>> {
        let ids = self.named(enumeration, &[kind::ENUM, kind::ENUM64]);
        ids.into_iter().flat_map(|id| self.values_of(id)).collect()
    }

    /// Names and values of every enumeration whose name a test picks.
    pub fn enumerations(&self, picked: impl Fn(&[u8]) -> bool) -> Vec<(&[u8], Vec<Value<'_>>)> {
        let ids = self.parts().flat_map(|part| part.section.ids());
        let found = ids.filter_map(|id| {
            let (_, of) = self.of(id)?;
            let name = self.string(of.name)?;
            (matches!(of.kind(), kind::ENUM | kind::ENUM64) && picked(name)).then(|| (name, self.values_of(id)))
        });
        found.collect()
    }

    /// A function by its name.
    pub fn function(&self, name: &str) -> Option<Function> {
        let id = *self.named(name, &[kind::FUNCTION]).first()?;
        Some(Function { id, of_module: id >= self.kernel.section.end() })
    }

    /// Types by name, in order.
    fn named(&self, name: &str, kinds: &[u32]) -> Vec<u32> {
        let name = name.as_bytes();
        let ids = self.parts().flat_map(|part| part.names.candidates(name));
        let is_it = |id: &u32| {
            self.of(*id).is_some_and(|(_, of)| kinds.contains(&of.kind()) && self.string(of.name) == Some(name))
        };
        ids.filter(is_it).collect()
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&*self.kernel).chain(&self.module)
    }

    fn of(&self, id: u32) -> Option<(&Section, Type)> {
        self.parts().find_map(|part| Some((&part.section, part.section.get(id)?)))
    }

    fn string(&self, offset: u32) -> Option<&[u8]> {
        self.parts().find_map(|part| part.section.string(offset))
    }

    /// What a type is behind its names and qualifiers.
    fn bare(&self, mut id: u32) -> Option<u32> {
        for _ in 0..DEPTH {
            let (_, of) = self.of(id)?;
            match of.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => id = of.size_or_type,
                _ => return Some(id),
            }
        }
        None
    }

    fn size_of(&self, id: u32, depth: usize) -> Option<u32> {
        let (section, of) = self.of(self.bare(id)?)?;
        match of.kind() {
            kind::POINTER => Some(8),
            kind::ARRAY => {
                let [element, _, count] = section.words::<3>(of, 0)?;
                self.size_of(element, depth.checked_sub(1)?)?.checked_mul(count)
            }
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FLOAT => Some(of.size_or_type),
            _ => None,
        }
    }

    fn member_of(&self, root: u32, path: &str) -> Option<Member> {
        let (mut offset, mut id) = (0_u32, root);
        for step in path.split('.') {
            let (name, index) = match step.split_once('[') {
                Some((name, index)) => (name, Some(index.strip_suffix(']')?.parse::<u32>().ok()?)),
                None => (step, None),
            };
            let (within, of) = self.field(id, name.as_bytes(), DEPTH)?;
            offset = offset.checked_add(within)?;
            id = of;
            if let Some(index) = index {
                let (section, array) = self.of(self.bare(of)?)?;
                let [element, _, count] = (array.kind() == kind::ARRAY).then(|| section.words::<3>(array, 0))??;
                id = (index < count).then_some(element)?;
                offset = offset.checked_add(self.size_of(id, DEPTH)?.checked_mul(index)?)?;
            }
        }
        Some(Member { offset, size: self.size_of(id, DEPTH)? })
    }

    /// Offset and type of a field, which may lie in an anonymous structure or union.
    fn field(&self, id: u32, name: &[u8], depth: usize) -> Option<(u32, u32)> {
        let (section, of) = self.of(self.bare(id)?)?;
        if !matches!(of.kind(), kind::STRUCT | kind::UNION) || name.is_empty() {
            return None;
        }
        for number in 0..of.count() {
            let [its_name, its_type, mut bits] = section.words::<3>(of, number * 3)?;
            let its_name = self.string(its_name)?;
            if of.has_bit_fields() {
                let width = bits >> 24;
                bits &= 0x00ff_ffff;
                if width != 0 {
                    continue;
                }
            }
            if its_name == name {
                return Some((bits / 8, its_type));
            }
            if its_name.is_empty()
                && let Some((within, found)) = self.field(its_type, name, depth.checked_sub(1)?)
            {
                return Some(((bits / 8).checked_add(within)?, found));
            }
        }
        None
    }

    fn values_of(&self, id: u32) -> Vec<Value<'_>> {
        let Some((section, of)) = self.of(id) else { return Vec::new() };
        let words = if of.kind() == kind::ENUM { 2 } else { 3 };
        let value = |number: usize| {
            let [name, value] = section.words::<2>(of, number * words)?;
            Some((self.string(name)?, value))
        };
        (0..of.count()).map_while(value).collect()
    }
}

/// What the kernel shows under this name.
fn read(name: &str) -> Result<Vec<u8>, BtfError> {
    let path = Path::new(FOLDER).join(name);
    std::fs::read(&path).map_err(|source| BtfError::Read { path: path.display().to_string(), source })
}
