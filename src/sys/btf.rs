//! Where the running kernel keeps what: the types of its own structures (BTF, `Documentation/bpf/btf.rst`).
//!
//! A BPF program that looks into a structure of the kernel's has to know the offsets of its members, which differ from
//! kernel to kernel. Linux describes its types in `/sys/kernel/btf/vmlinux`: a table of records of 12 bytes and a tail
//! by kind, and the names. This reads what a program needs: offsets of members, numbers of types and functions.
//!
//! Every access is checked against the end of the file: what does not add up is an error and no panic.

use std::io;

use super::{Error, Result};

/// Kinds of types, bits 24 to 28 of a record's second word.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Length of a record without its tail, and of a structure's member in that.
const RECORD_BYTES: usize = 12;
/// Typedefs and qualifiers that are looked through, and anonymous structures that are looked into, at most.
const DEPTH_MAX: usize = 16;

/// The types of the running kernel.
#[derive(Debug)]
pub(super) struct Btf {
    bytes: Vec<u8>,
    types: std::ops::Range<usize>,
    names: std::ops::Range<usize>,
    /// Where each type begins in `bytes`; the first is void.
    records: Vec<u32>,
}

/// One record, as far as all kinds have it.
#[derive(Clone, Copy)]
struct Record {
    name: u32,
    kind: u32,
    /// Members of a structure.
    count: usize,
    /// Whether a member's offset shares its word with the size of a bit field.
    packed: bool,
    /// The type that a typedef or qualifier is about.
    target: u32,
}

impl Btf {
    /// Reads the running kernel's, 5 MiB or so.
    ///
    /// # Errors
    /// The file is not there (a kernel without CONFIG_DEBUG_INFO_BTF) or not what it should be.
    pub(super) fn read() -> Result<Btf> {
        let cannot = || "cannot read the kernel's types (/sys/kernel/btf/vmlinux)";
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux").map_err(Error::on(cannot))?;
        Btf::parse(bytes).ok_or_else(|| Error::new(cannot(), io::Error::from(io::ErrorKind::InvalidData)))
    }

    fn parse(bytes: Vec<u8>) -> Option<Btf> {
        const MAGIC: u16 = 0xeb9f;
        if u16::from_ne_bytes(*bytes.first_chunk()?) != MAGIC {
            return None;
        }
        let field = |at| word(&bytes, at).and_then(|value| usize::try_from(value).ok());
        let start = field(4)?;
        let section = |at: usize| {
            let from = start.checked_add(field(at)?)?;
            let range = from..from.checked_add(field(at + 4)?)?;
            (range.end <= bytes.len()).then_some(range)
        };
        let (types, names) = (section(8)?, section(16)?);
        let mut btf = Btf { bytes, types, names, records: vec![0] };
        let mut at = btf.types.start;
        while at < btf.types.end {
            btf.records.push(u32::try_from(at).ok()?);
            let record = btf.record_at(at)?;
            at += RECORD_BYTES + record.tail()?;
        }
        Some(btf)
    }

    fn record_at(&self, at: usize) -> Option<Record> {
        let info = word(&self.bytes, at + 4)?;
        Some(Record {
            name: word(&self.bytes, at)?,
            kind: info >> 24 & 0x1f,
            count: usize::try_from(info & 0xffff).ok()?,
            packed: info >> 31 == 1,
            target: word(&self.bytes, at + 8)?,
        })
    }

    fn record(&self, id: u32) -> Option<(usize, Record)> {
        let at = usize::try_from(*self.records.get(usize::try_from(id).ok()?)?).ok()?;
        (id != 0).then_some((at, self.record_at(at)?))
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        let names = &self.bytes[self.names.clone()];
        let found = usize::try_from(offset).ok().and_then(|offset| names.get(offset..));
        found
            .and_then(|found| found.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    fn find(&self, kind: u32, name: &str) -> Option<u32> {
        let ids = 1..u32::try_from(self.records.len()).ok()?;
        ids.into_iter().find(|&id| {
            self.record(id).is_some_and(|(_, record)| record.kind == kind && self.is_named(record.name, name))
        })
    }

    /// The number of a structure.
    pub(super) fn structure(&self, name: &str) -> Result<u32> {
        self.find(kind::STRUCT, name).ok_or_else(|| lacks(&format!("struct {name}")))
    }

    /// The number of a function.
    pub(super) fn function(&self, name: &str) -> Result<u32> {
        self.find(kind::FUNC, name).ok_or_else(|| lacks(&format!("{name}()")))
    }

    /// Bytes from the start of a structure to a member, which may be a member's member and so on.
    pub(super) fn offset(&self, structure: &str, path: &[&str]) -> Result<i32> {
        let mut id = self.structure(structure)?;
        let mut bits = 0;
        for member in path {
            let found = self.member(id, member, DEPTH_MAX);
            let (offset, of) = found.ok_or_else(|| lacks(&format!("{structure}.{}", path.join("."))))?;
            bits += offset;
            id = of;
        }
        i32::try_from(bits / 8).map_err(|_| lacks(structure))
    }

    /// Offset in bits and type of a member, also of one in an anonymous structure or union.
    fn member(&self, id: u32, name: &str, depth: usize) -> Option<(u32, u32)> {
        let (at, record) = self.record(self.resolve(id)?)?;
        if !matches!(record.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        (0..record.count).find_map(|number| {
            let at = at + RECORD_BYTES * (1 + number);
            let (named, of) = (word(&self.bytes, at)?, word(&self.bytes, at + 4)?);
            let offset = word(&self.bytes, at + 8)?;
            let offset = if record.packed { offset & 0xff_ffff } else { offset };
            if self.is_named(named, name) {
                return Some((offset, of));
            }
            if !self.is_named(named, "") || depth == 0 {
                return None;
            }
            self.member(of, name, depth - 1).map(|(inner, of)| (offset + inner, of))
        })
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        for _ in 0..DEPTH_MAX {
            let (_, record) = self.record(id)?;
            match record.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = record.target;
                }
                _ => return Some(id),
            }
        }
        None
    }
}

impl Record {
    /// Bytes that follow the record; `None` when the kind is unknown, because nothing can be found behind it.
    fn tail(&self) -> Option<usize> {
        Some(match self.kind {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * self.count,
            kind::ENUM | kind::FUNC_PROTO => 8 * self.count,
            // Pointer, forward declaration, typedef, qualifiers, function, float, tag of a type.
            2 | 7..=12 | 16 | kind::TYPE_TAG => 0,
            _ => return None,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

fn lacks(what: &str) -> Error {
    Error::refused(io::ErrorKind::Unsupported, format!("this kernel has no {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A structure of two members, the second in an anonymous union behind a typedef, and a function.
    fn sample() -> Vec<u8> {
        let names = b"\0list\0next\0u\0alias\0look\0";
        let words: &[u32] = &[
            // 1: struct list { next: 3 at 0; anonymous typedef 4 at 64 }
            1,
            kind::STRUCT << 24 | 2,
            16,
            6,
            3,
            0,
            0,
            4,
            64,
            // 2: union { u: 3 at 8 }
            0,
            kind::UNION << 24 | 1,
            8,
            11,
            3,
            8,
            // 3: int of 4 bytes
            0,
            kind::INT << 24,
            4,
            0,
            // 4: typedef alias of 2
            13,
            kind::TYPEDEF << 24,
            2,
            // 5: function look
            19,
            kind::FUNC << 24,
            3,
        ];
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).expect("short");
        for word in [24, 0, len(&types), len(&types), len(names)] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(names);
        bytes
    }

    #[test]
    fn members_are_found_by_their_path() {
        let btf = Btf::parse(sample()).expect("parsed");
        assert_eq!(btf.structure("list").expect("there"), 1);
        assert_eq!(btf.function("look").expect("there"), 5);
        assert_eq!(btf.offset("list", &["next"]).expect("there"), 0);
        assert_eq!(btf.offset("list", &["u"]).expect("there"), 9);
        for (structure, member) in [("list", "other"), ("look", "next"), ("lis", "next")] {
            let error = btf.offset(structure, &[member]).expect_err("not there");
            assert!(error.to_string().starts_with("this kernel has no "), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_cut_short_is_refused() {
        let sample = sample();
        for len in 0..sample.len() {
            let btf = Btf::parse(sample[..len].to_vec());
            assert!(btf.is_none(), "{len}");
        }
        for byte in 0..sample.len() {
            let mut bytes = sample.clone();
            bytes[byte] = !bytes[byte];
            // Whatever it says, it says it without a panic.
            if let Some(btf) = Btf::parse(bytes) {
                let _ = btf.offset("list", &["u"]);
                let _ = btf.function("look");
            }
        }
    }
}
