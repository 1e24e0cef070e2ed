//! What needs no privilege: the loopback device, and bytes no kernel would send. The rest is in `tests/sys.rs`.

use super::*;

#[test]
fn the_loopback_device_is_found_by_name_by_index_and_in_the_list() {
    let netlink = Netlink::open_in(None).expect("netlink");
    let lo = netlink.link("lo").expect("asked").expect("every namespace has one");
    assert_eq!((lo.index, lo.name.as_str(), lo.mac), (1, "lo", Some(crate::addr::MacAddr::ZERO)));
    assert_eq!(netlink.link_by_index(1).expect("asked").map(|link| link.name), Some("lo".to_owned()));
    assert!(netlink.links().expect("asked").iter().any(|link| link.name == "lo" && link.mtu == lo.mtu));
    assert_eq!(netlink.link("no-such-if").expect("asked"), None);
    assert_eq!(netlink.link_by_index(0x7fff_fff0).expect("asked"), None);
    assert!(netlink.link("a/b").is_err());
    assert_eq!(netlink.peer_of(&lo).expect("asked"), None);
}

#[test]
fn a_connection_works_from_many_threads() {
    let netlink = Netlink::open_in(None).expect("netlink");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(netlink.link("lo").expect("asked").map(|link| link.index), Some(1));
                    assert!(!netlink.links().expect("asked").is_empty());
                }
            });
        }
    });
}

#[test]
fn malformed_answers_end_the_reading() {
    assert_eq!(messages(&[]).count(), 0);
    assert_eq!(messages(&[0xff; 15]).count(), 0);
    // A header that claims less than itself, then more than there is.
    for claimed in [0u32, 15, 17] {
        let mut bytes = [0u8; 16];
        bytes[..4].copy_from_slice(&claimed.to_ne_bytes());
        assert_eq!(messages(&bytes).count(), 0, "{claimed}");
    }
    for len in 0..16 {
        assert_eq!(Link::read(&[0; 16][..len]), None);
    }
    let mut seen = 0;
    // An attribute of length 3 (less than its header), and one that runs over the end.
    for bytes in [[3, 0, 1, 0], [9, 0, 1, 0]] {
        each_attribute(&bytes, |_, _| seen += 1);
    }
    assert_eq!(seen, 0);
}

#[test]
fn messages_about_bridge_ports_are_not_about_interfaces() {
    let mut body = [0u8; 16];
    body[4] = 7;
    assert_eq!(Link::read(&body).map(|link| link.index), Some(7));
    body[0] = u8::try_from(libc::AF_BRIDGE).expect("7");
    assert_eq!(Link::read(&body), None);
}

#[test]
fn the_kernels_words_are_part_of_the_error() {
    let mut body = (-libc::EINVAL).to_ne_bytes().to_vec();
    body.extend([0; HEADER_BYTES]);
    body.extend([8, 0, 1, 0, b'n', b'o', b'!', 0]);
    let refusal = acknowledgement(NLM_F_ACK_TLVS | NLM_F_CAPPED, &body).err().expect("refused");
    let error = refusal.on("cannot do it");
    assert!(error.to_string().starts_with("cannot do it (no!): Invalid argument"), "{error}");
    assert!(acknowledgement(0, &[0; 4]).is_ok());
}
