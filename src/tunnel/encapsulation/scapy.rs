//! Packets made by scapy 2.5.0, which knows nothing of this code, and what becomes of them here. Those that we could have sent
//! ourselves must come out of [`Header::write`] byte for byte.
//!
//! In the expressions F is `Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02", type=0x88b5)/Raw(b"frame")`, and T is the same
//! with `Dot1Q(prio=5, id=1, vlan=0xabc, type=0x88b5)` in it. [`CASES`] holds what stands before them.

use super::Encapsulation::{Geneve, Gre, Vxlan};
use super::NetworkId::{Key, Session, Vni};
use super::{Encapsulation, Header, NetworkId};
use crate::tunnel::erspan::{Direction, Kind, Sender};
use crate::tunnel::vxlan::VNI_MAX;

const FRAME: &str = "02000000000102000000000288b56672616d65";
const TAGGED: &str = "0200000000010200000000028100babc88b56672616d65";

/// What the expressions say where there are sequence numbers and timestamps.
const SEQUENCE: u32 = 6;
const TIMESTAMP: u32 = 7;

const GRE: Header = Header::Gre { key: false, sequence: false, checksum: false };

const fn two(index: u32) -> Header {
    Header::Erspan(Sender::II { index })
}

const fn three(direction: Direction, hardware: u8) -> Header {
    Header::Erspan(Sender::III { direction, hardware })
}

struct Case {
    /// The bytes, but for the frame.
    header: &'static str,
    frame: &'static str,
    encapsulation: Encapsulation,
    /// The network; `None` when it is to be refused.
    network: Option<NetworkId>,
    /// What writes the same header, and the network's number.
    written: Option<(Header, u32)>,
}

const fn case(
    header: &'static str,
    frame: &'static str,
    encapsulation: Encapsulation,
    network: Option<NetworkId>,
    written: Option<(Header, u32)>,
) -> Case {
    Case { header, frame, encapsulation, network, written }
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    // VXLAN(flags=8, vni=0x123456)/F
    case("0800000012345600", FRAME, Vxlan, Some(Vni(0x12_3456)), Some((Header::Vxlan, 0x12_3456))),
    // VXLAN(flags=8, reserved1=0xffffff, vni=0xffffff, reserved2=0xff)/F
    case("08ffffffffffffff", FRAME, Vxlan, Some(Vni(VNI_MAX)), None),
    // VXLAN(flags=0, vni=5)/F
    case("0000000000000500", FRAME, Vxlan, None, None),
    // VXLAN(flags=0x88, gpid=7, vni=5)/F
    case("8800000700000500", FRAME, Vxlan, None, None),
    // VXLAN(flags=0x0c, NextProtocol=3, vni=5)/F
    case("0c00000300000500", FRAME, Vxlan, None, None),
    // VXLAN(flags=0x09, vni=5)/F
    case("0900000000000500", FRAME, Vxlan, None, None),
    // GENEVE(proto=0x6558, vni=0x123456)/F
    case("0000655812345600", FRAME, Geneve, Some(Vni(0x12_3456)), Some((Header::Geneve, 0x12_3456))),
    // GENEVE(proto=0x6558, vni=0xffffff, reserved=0x3f, reserved2=0xff)/F
    case("003f6558ffffffff", FRAME, Geneve, Some(Vni(VNI_MAX)), None),
    // GENEVE(version=1, proto=0x6558, vni=5)/F
    case("4000655800000500", FRAME, Geneve, None, None),
    // GENEVE(oam=1, proto=0x6558, vni=5)/F
    case("0080655800000500", FRAME, Geneve, None, None),
    // GENEVE(critical=1, proto=0x6558, vni=5, options=GeneveOptions(classid=0x0102, type=0x80, data=b"data"))/F
    case("02406558000005000102800164617461", FRAME, Geneve, None, None),
    // GENEVE(critical=0, proto=0x6558, vni=5, options=GeneveOptions(classid=0x0102, type=0x80, data=b"data"))/F
    case("02006558000005000102800164617461", FRAME, Geneve, None, None),
    // GENEVE(proto=0x6558, vni=5, options=GeneveOptions(classid=0x0102, type=1, data=b"data"))/F
    case("02006558000005000102010164617461", FRAME, Geneve, Some(Vni(5)), None),
    // GENEVE(proto=0x6558, vni=5, options=[GeneveOptions(type=1, reserved=7), GeneveOptions(type=2, data=b"long data...")])/F
    case("050065580000050000000100000002036c6f6e6720646174612e2e2e", FRAME, Geneve, Some(Vni(5)), None),
    // GENEVE(proto=0x6558, vni=5, optionlen=2, options=GeneveOptions(type=1, length=2, data=b"data"))/F
    case("02006558000005000000010264617461", FRAME, Geneve, None, None),
    // GENEVE(proto=0x0800, vni=5)/IP(dst="10.0.0.1", src="10.0.0.2")
    case("00000800000005004500001400010000400066e70a0000020a000001", "", Geneve, None, None),
    // GRE(proto=0x6558)/F
    case("00006558", FRAME, Gre, Some(Key(None)), Some((GRE, 0))),
    // GRE(proto=0x6558, key_present=1, key=0x01020304)/F
    case("2000655801020304", FRAME, Gre, Some(Key(Some(0x0102_0304))), Some((Header::Gre { key: true, sequence: false, checksum: false }, 0x0102_0304))),
    // GRE(proto=0x6558, seqnum_present=1, sequence_number=6)/F
    case("1000655800000006", FRAME, Gre, Some(Key(None)), Some((Header::Gre { key: false, sequence: true, checksum: false }, 0))),
    // GRE(proto=0x6558, chksum_present=1)/F
    case("80006558610e0000", FRAME, Gre, Some(Key(None)), Some((Header::Gre { key: false, sequence: false, checksum: true }, 0))),
    // GRE(proto=0x6558, chksum_present=1, key_present=1, key=5, seqnum_present=1, sequence_number=6)/F
    case("b0006558310300000000000500000006", FRAME, Gre, Some(Key(Some(5))), Some((Header::Gre { key: true, sequence: true, checksum: true }, 5))),
    // GRE(proto=0x6558, chksum_present=1, offset=0xffff)/F
    case("80006558610effff", FRAME, Gre, Some(Key(None)), None),
    // GRE(proto=0x6558, chksum_present=1, chksum=0x1234)/F
    case("8000655812340000", FRAME, Gre, None, None),
    // GRE(proto=0x6558, recursion_control=3, flags=0x1f)/F
    case("03f86558", FRAME, Gre, Some(Key(None)), None),
    // GRE(proto=0x6558, recursion_control=4)/F
    case("04006558", FRAME, Gre, None, None),
    // GRE(proto=0x6558, routing_present=1)/F
    case("4000655800000000", FRAME, Gre, None, None),
    // GRE(proto=0x6558, strict_route_source=1)/F
    case("08006558", FRAME, Gre, None, None),
    // GRE(proto=0x6558, version=1)/F
    case("00016558", FRAME, Gre, None, None),
    // GRE(proto=0x0800)/IP(dst="10.0.0.1", src="10.0.0.2")
    case("000008004500001400010000400066e70a0000020a000001", "", Gre, None, None),
    // GRE(proto=0x88be, seqnum_present=1, sequence_number=6)/ERSPAN_II(ver=1, session_id=0x3a5, index=0x54321)/F
    case("100088be00000006100003a500054321", FRAME, Gre, Some(Session(Kind::II, 0x3a5)), Some((two(0x5_4321), 0x3a5))),
    // GRE(proto=0x88be, seqnum_present=1, sequence_number=6)/ERSPAN_II(ver=1, vlan=0xabc, cos=5, en=3, session_id=1023, index=0xfffff)/T
    case("100088be000000061abcbbff000fffff", TAGGED, Gre, Some(Session(Kind::II, 1023)), Some((two(0xf_ffff), 1023))),
    // GRE(proto=0x88be, seqnum_present=1, sequence_number=6)/ERSPAN_II(ver=1, vlan=10, cos=7, en=2, session_id=1, reserved=0xfff)/F
    case("100088be00000006100af001fff00000", FRAME, Gre, Some(Session(Kind::II, 1)), None),
    // GRE(proto=0x88be, seqnum_present=1, sequence_number=6)/ERSPAN_II(ver=1, t=1, session_id=1)/F
    case("100088be000000061000040100000000", FRAME, Gre, None, None),
    // GRE(proto=0x88be, seqnum_present=1, sequence_number=6)/ERSPAN_II(ver=2, session_id=1)/F
    case("100088be000000062000000100000000", FRAME, Gre, None, None),
    // GRE(proto=0x88be)/F
    case("000088be", FRAME, Gre, None, None),
    // GRE(proto=0x88be, key_present=1, key=1, seqnum_present=1, sequence_number=6)/ERSPAN_II(ver=1, session_id=1)/F
    case("300088be00000001000000061000000100000000", FRAME, Gre, None, None),
    // GRE(proto=0x22eb, seqnum_present=1, sequence_number=6)/ERSPAN_III(session_id=0x3a5, timestamp=7, p=1, hw=0x2a, d=1)/F
    case("100022eb00000006200003a500000007000082a8", FRAME, Gre, Some(Session(Kind::III, 0x3a5)), Some((three(Direction::Egress, 0x2a), 0x3a5))),
    // GRE(proto=0x22eb, seqnum_present=1, sequence_number=6)/ERSPAN_III(vlan=0xabc, cos=5, session_id=1023, timestamp=7, p=1)/T
    case("100022eb000000062abca3ff0000000700008000", TAGGED, Gre, Some(Session(Kind::III, 1023)), Some((three(Direction::Ingress, 0), 1023))),
    // GRE(proto=0x22eb, seqnum_present=1, sequence_number=6)/ERSPAN_III(bso=2, session_id=1, timestamp=0xffffffff, sgt_other=0xffff, p=0, hw=63, d=1, gra=3)/F
    case("100022eb0000000620001001ffffffffffff03fe", FRAME, Gre, Some(Session(Kind::III, 1)), None),
    // GRE(proto=0x22eb, seqnum_present=1, sequence_number=6)/ERSPAN_III(session_id=1, p=1, o=1)/ERSPAN_PlatformSpecific(platf_id=5, info1=0x3ffffff, info2=0xffffffff)/F
    case("100022eb0000000620000001000000000000800117ffffffffffffff", FRAME, Gre, Some(Session(Kind::III, 1)), None),
    // GRE(proto=0x22eb, seqnum_present=1, sequence_number=6)/ERSPAN_III(session_id=1, bso=3)/F
    case("100022eb00000006200018010000000000000000", FRAME, Gre, None, None),
    // GRE(proto=0x22eb, seqnum_present=1, sequence_number=6)/ERSPAN_III(session_id=1, t=1)/F
    case("100022eb00000006200004010000000000000000", FRAME, Gre, None, None),
    // GRE(proto=0x22eb, seqnum_present=1, sequence_number=6)/ERSPAN_III(session_id=1, ft=2)/IP(dst="10.0.0.1", src="10.0.0.2")
    case("100022eb000000062000000100000000000008004500001400010000400066e70a0000020a000001", "", Gre, None, None),
    // GRE(proto=0x22eb, seqnum_present=1, sequence_number=6)/ERSPAN_III(ver=1, session_id=1)/F
    case("100022eb00000006100000010000000000000000", FRAME, Gre, None, None),
];

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

#[test]
fn what_scapy_made_is_understood() {
    for Case { header, frame, encapsulation, network, .. } in CASES {
        let packet = bytes(&[*header, frame].concat());
        let expected = network.map(|network| (network, bytes(frame)));
        let parsed = encapsulation.parse(&packet).map(|(network, frame)| (network, frame.to_vec()));
        assert_eq!(parsed, expected, "{header}");
        for cut in 0..bytes(header).len() {
            let frame = encapsulation.parse(&packet[..cut]);
            assert_eq!(frame, None, "{header} cut to {cut} bytes");
        }
    }
}

#[test]
fn what_scapy_made_is_what_we_write() {
    for (case, &(header, number)) in CASES.iter().filter_map(|case| Some((case, case.written.as_ref()?))) {
        let written = header.write(number, SEQUENCE, TIMESTAMP, &[&bytes(case.frame)]);
        assert_eq!(written[..], bytes(case.header), "{header:?}");
    }
}
