//! What tells this machine from others, for names that stay the same as long as it is the same machine.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

/// Where systemd and D-Bus keep it (machine-id(5)).
const FILES: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
/// The kernel's, the same in every container, and another after each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// A file is read no further: 32 digits, and dashes perhaps.
const LONGEST: u64 = 64;

/// An id of 128 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MachineId {
    /// The machine's own, which is to be kept secret (machine-id(5)).
    Lasting([u8; 16]),
    /// There is none. This one holds until the next boot, in this network namespace.
    UntilBoot([u8; 16]),
}

impl MachineId {
    /// Reads the machine's id. `None` if there is not even a boot's.
    #[must_use]
    pub fn read() -> Option<MachineId> {
        let lasting = FILES.iter().find_map(|file| parse(&text(file)?)).map(MachineId::Lasting);
        lasting.or_else(|| {
            let mut id = parse(&text(BOOT_ID)?)?;
            // Containers without an id of their own have their kernel's in common, but not their network.
            let netns = fs::metadata("/proc/thread-self/ns/net").ok()?.ino();
            id.iter_mut().zip(netns.to_be_bytes()).for_each(|(byte, other)| *byte ^= other);
            Some(MachineId::UntilBoot(id))
        })
    }
}

fn text(file: &str) -> Option<String> {
    let mut text = String::new();
    fs::File::open(file).ok()?.take(LONGEST).read_to_string(&mut text).ok()?;
    Some(text)
}

/// 32 hexadecimal digits, with or without dashes. Zero is none, and so is "uninitialized", as a machine may say that has
/// never booted.
fn parse(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim().chars().filter(|&c| c != '-').collect();
    if digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(&digits, 16).ok().filter(|&id| id != 0).map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read() {
        let id =
            [0x3d, 0x12, 0x19, 0xc7, 0xc4, 0xc5, 0x40, 0x4a, 0xaa, 0x1f, 0x6d, 0x2a, 0x48, 0xad, 0xfd, 0xa4];
        assert_eq!(parse("3d1219c7c4c5404aaa1f6d2a48adfda4\n"), Some(id));
        assert_eq!(parse("3d1219c7-c4c5-404a-aa1f-6d2a48adfda4"), Some(id));
        for wrong in [
            "",
            "uninitialized\n",
            "00000000000000000000000000000000",
            "3d12",
            "+d1219c7c4c5404aaa1f6d2a48adfda4",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
        assert!(MachineId::read().is_some(), "there is a boot at least");
    }
}
