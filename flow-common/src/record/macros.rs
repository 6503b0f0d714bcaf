//! The macros that turn rows of the table into structs and their loops. Tables only, no control flow of its own.

/// First name where there is one for both families, else each its own.
macro_rules! pair {
    ($both:literal) => {
        [$both, $both]
    };
    ($v4:literal, $v6:literal) => {
        [$v4, $v6]
    };
}

/// The abstract type of a row: the one it states, else its Rust type's.
macro_rules! data_type {
    ($rust:ty) => {
        <$rust as $crate::record::value::Element>::TYPE
    };
    ($rust:ty, $stated:ident) => {
        $crate::record::Type::$stated
    };
}

/// What both kinds of groups have.
macro_rules! group {
    ($group:ident { $(
        $doc:expr, $field:ident: $rust:ty $(as $stated:ident)?,
        $name:literal $(| $name6:literal)? = $enterprise:ident / $id:literal $(| $id6:literal)?;
    )+ }) => {
        impl $group {
            /// The rows of this group, in the order of the wire.
            pub const FIELDS: &'static [$crate::record::Field] = &[$(
                $crate::record::Field::new(
                    [$doc, stringify!($field)],
                    $crate::record::macros::pair!($name $(, $name6)?),
                    $enterprise,
                    $crate::record::macros::pair!($id $(, $id6)?),
                    $crate::record::macros::data_type!($rust $(, $stated)?),
                ),
            )+];

            /// Shows every field's value, in the order of the wire.
            pub fn visit<'a>(&'a self, mut show: impl FnMut(&'static $crate::record::Field, $crate::record::Value<'a>)) {
                let mut rows = Self::FIELDS.iter();
                $(
                    if let Some(row) = rows.next() {
                        show(row, $crate::record::value::Element::value(&self.$field));
                    }
                )+
            }
        }

        impl $group {
            #[inline(always)]
            pub(crate) fn read(family: $crate::record::Family, from: &mut $crate::ipfix::wire::Reader<'_>) -> Option<Self> {
                Some(Self { $( $field: $crate::record::value::Element::read(family, from)?, )+ })
            }
        }
    };
}

/// A group of fields of fixed length: `Copy`, encoded through an array of known size.
macro_rules! fixed_group {
    ($(#[doc = $group_doc:literal])+ pub struct $group:ident { $(
        $(#[doc = $doc:literal])+
        $field:ident: $rust:ty $(as $stated:ident)?,
        $name:literal $(| $name6:literal)? = $enterprise:ident / $id:literal $(| $id6:literal)?;
    )+ }) => {
        $(#[doc = $group_doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $group {
            $( $(#[doc = $doc])+ pub $field: $rust, )+
        }

        impl Default for $group {
            fn default() -> Self {
                Self { $( $field: <$rust as $crate::record::value::Element>::ABSENT, )+ }
            }
        }

        impl $group {
            const LENGTHS: [usize; 2] = $crate::record::value::lengths(Self::FIELDS);

            /// Bytes on the wire.
            #[inline]
            pub const fn len(family: $crate::record::Family) -> usize {
                Self::LENGTHS[family.index()]
            }

            /// Appends the group as it stands on the wire.
            #[inline]
            pub fn encode(&self, family: $crate::record::Family, out: &mut Vec<u8>) {
                match family {
                    $crate::record::Family::V4 => {
                        let mut bytes = [0; Self::LENGTHS[0]];
                        self.write(family, &mut bytes.as_mut_slice());
                        out.extend_from_slice(&bytes);
                    }
                    $crate::record::Family::V6 => {
                        let mut bytes = [0; Self::LENGTHS[1]];
                        self.write(family, &mut bytes.as_mut_slice());
                        out.extend_from_slice(&bytes);
                    }
                }
            }

            /// Reads the group from the front of `bytes`; what follows it is left alone.
            #[inline]
            pub fn decode(family: $crate::record::Family, bytes: &[u8]) -> Option<Self> {
                // Out of arrays, so that every offset is a constant and the length is checked once.
                use $crate::{ipfix::wire::Reader, record::Family};
                match family {
                    Family::V4 => Self::read(family, &mut Reader::new(bytes.first_chunk::<{ Self::LENGTHS[0] }>()?)),
                    Family::V6 => Self::read(family, &mut Reader::new(bytes.first_chunk::<{ Self::LENGTHS[1] }>()?)),
                }
            }

            // Into an array, so that every offset is a constant and the vector grows once.
            #[inline(always)]
            fn write(&self, family: $crate::record::Family, out: &mut impl bytes::BufMut) {
                $( $crate::record::value::Element::write(&self.$field, family, out); )+
            }
        }

        impl $crate::record::value::Group for $group {
            fn encode_limited(&self, family: $crate::record::Family, out: &mut Vec<u8>, _: &mut $crate::record::Cut) {
                self.encode(family, out);
            }
            fn take(family: $crate::record::Family, from: &mut $crate::ipfix::wire::Reader<'_>) -> Option<Self> {
                Self::read(family, from)
            }
        }

        $crate::record::macros::group! { $group { $(
            concat!($($doc),+), $field: $rust $(as $stated)?, $name $(| $name6)? = $enterprise / $id $(| $id6)?;
        )+ } }
    };
}

/// A group with strings: owned, encoded field by field.
macro_rules! owned_group {
    ($(#[doc = $group_doc:literal])+ pub struct $group:ident { $(
        $(#[doc = $doc:literal])+
        $field:ident: $rust:ty $(as $stated:ident)?,
        $name:literal $(| $name6:literal)? = $enterprise:ident / $id:literal $(| $id6:literal)?;
    )+ }) => {
        $(#[doc = $group_doc])+
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $group {
            $( $(#[doc = $doc])+ pub $field: $rust, )+
        }

        impl Default for $group {
            fn default() -> Self {
                Self { $( $field: <$rust as $crate::record::value::Element>::ABSENT, )+ }
            }
        }

        impl $group {
            /// Appends the group as it stands on the wire; what is too long is cut and counted.
            pub fn encode(
                &self,
                family: $crate::record::Family,
                out: &mut Vec<u8>,
                cut: &mut $crate::record::Cut,
            ) {
                self.visit(|row, value| $crate::record::value::put(row, value, family, out, cut));
            }
        }

        impl $crate::record::value::Group for $group {
            fn encode_limited(&self, family: $crate::record::Family, out: &mut Vec<u8>, cut: &mut $crate::record::Cut) {
                self.encode(family, out, cut);
            }
            fn take(family: $crate::record::Family, from: &mut $crate::ipfix::wire::Reader<'_>) -> Option<Self> {
                Self::read(family, from)
            }
        }

        $crate::record::macros::group! { $group { $(
            concat!($($doc),+), $field: $rust $(as $stated)?, $name $(| $name6)? = $enterprise / $id $(| $id6)?;
        )+ } }
    };
}

/// A record of several groups: encode, decode, values by name, JSON.
macro_rules! composite {
    ($record:ident, $content:ident: $($group:ident),+) => {
        impl $record {
            /// Shows every field's value, in the order of the wire; of the extended ones too.
            pub fn visit<'a>(&'a self, mut show: impl FnMut(&'static $crate::record::Field, $crate::record::Value<'a>)) {
                $( self.$group.visit(&mut show); )+
                self.extended.visit(&mut show);
            }

            /// The value of the element with this name.
            pub fn value(&self, name: &str) -> Option<$crate::record::Value<'_>> {
                let mut found = None;
                self.visit(|row, value| {
                    if row.is_named(name) {
                        found = Some(value);
                    }
                });
                found
            }

            /// Appends the record as it stands on the wire, in the family of its addresses.
            pub fn encode(&self, extended: bool, out: &mut Vec<u8>, cut: &mut $crate::record::Cut) {
                use $crate::record::value::Group;
                let family = self.head.family();
                $( self.$group.encode_limited(family, out, cut); )+
                if extended {
                    self.extended.encode(family, out);
                }
            }

            /// Reads one record and gives what follows it.
            pub fn decode(family: $crate::record::Family, extended: bool, bytes: &[u8]) -> Option<($record, &[u8])> {
                use $crate::record::value::Group;
                let mut from = $crate::ipfix::wire::Reader::new(bytes);
                $( let $group = Group::take(family, &mut from)?; )+
                let extended = if extended {
                    Group::take(family, &mut from)?
                } else {
                    $crate::record::Extended::absent(family)
                };
                Some(($record { $($group,)+ extended }, from.rest()))
            }

            /// The layout of this record on the wire.
            pub fn layout(&self, extended: bool) -> $crate::record::Layout {
                $crate::record::Layout {
                    family: self.head.family(),
                    content: $crate::record::Content::$content,
                    extended,
                }
            }

            /// Appends the record as one line of JSON.
            pub fn json(&self, extended: bool, at: $crate::time::Timestamp, out: &mut Vec<u8>) {
                let mut line = $crate::record::json::Line::begin(out, at, self.head.family());
                $( self.$group.visit(|row, value| line.field(row, value)); )+
                if extended {
                    self.extended.visit(|row, value| line.field(row, value));
                }
                line.end();
            }
        }
    };
}

pub(super) use {composite, data_type, fixed_group, group, owned_group, pair};
