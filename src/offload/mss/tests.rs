use proptest::prelude::*;

use super::super::tests::{Field, Model, model};
use super::*;

/// A SYN (with ACK, or without) whose MSS option stands behind `before` bytes of other options.
fn syn(ipv4: bool, tags: usize, before: usize, mss: u16, ack: bool) -> Model {
    let [high, low] = mss.to_be_bytes();
    // One option of an unknown kind, then single bytes.
    let mut options = if before < 3 { vec![NOP; before] } else { vec![253, 3, 0x77] };
    options.resize(before, NOP);
    options.extend([MSS, 4, high, low, 4, 2, NOP, 3, 3, 7]);
    options.resize(options.len().next_multiple_of(4), END);
    let tag = crate::wire::ethernet::Tag { tpid: crate::wire::ethernet::EtherType::VLAN, tci: 10 };
    Model {
        tags: vec![tag; tags],
        tcp_options: options,
        tcp_flags: tcp::SYN | if ack { tcp::ACK } else { 0 },
        ..model(ipv4, true, 0)
    }
}

fn unfinished(model: &Model) -> Offload {
    Offload {
        needs_csum: true,
        csum_start: u16::try_from(model.l4()).expect("small"),
        csum_offset: tcp::CHECKSUM_OFFSET,
        ..Offload::default()
    }
}

#[test]
fn what_is_lowered_and_what_is_not() {
    for (ipv4, least) in [(true, 1410), (false, 1390)] {
        for (mss, wanted) in
            [(1460, Some(least)), (least + 1, Some(least)), (least, None), (536, None), (0, None)]
        {
            let frame = syn(ipv4, 0, 0, mss, false).build(Field::Complete);
            let found = clamp(&frame, 14 + 1450);
            assert_eq!(found.map(|clamp| clamp.mss), wanted, "IPv4: {ipv4}, {mss}");
        }
        let tagged = syn(ipv4, 2, 0, 1460, true).build(Field::Complete);
        assert_eq!(clamp(&tagged, 14 + 1450).map(|clamp| clamp.mss), Some(least - 8));
        assert_eq!(clamp(&tagged, 14 + 8 + 60 - if ipv4 { 20 } else { 0 }), None, "no room for any");
        assert_eq!(clamp(&tagged, 0), None);
    }
    let not_syn = Model { tcp_flags: tcp::ACK, ..syn(true, 0, 0, 1460, false) };
    assert_eq!(clamp(&not_syn.build(Field::Complete), 1000), None);
    for options in
        [vec![], vec![NOP; 8], vec![END, MSS, 4, 5, 180, 0, 0, 0], vec![MSS, 5, 5, 180, 0, 0, 0, 0]]
    {
        let silent = Model { tcp_options: options, ..syn(true, 0, 0, 1460, false) };
        assert_eq!(clamp(&silent.build(Field::Complete), 1000), None, "{silent:?}");
    }
    // Options that go nowhere.
    for options in
        [[253, 0, 0, 0], [253, 1, 0, 0], [NOP, NOP, NOP, 253], [253, 200, 0, 0], [NOP, NOP, MSS, 4]]
    {
        let broken = Model { tcp_options: options.to_vec(), ..syn(true, 0, 0, 1460, false) };
        assert_eq!(clamp(&broken.build(Field::Complete), 1000), None, "{options:?}");
    }
    let mut fragment = syn(true, 0, 0, 1460, false).build(Field::Complete);
    fragment[14 + 6] = 0x20;
    assert_eq!(clamp(&fragment, 1000), None);
}

proptest! {
    /// The frame is the one that its sender would have made with the lower number, whatever of the checksum is done.
    #[test]
    fn as_if_its_sender_had_said_so(
        ipv4: bool,
        tags in 0..3_usize,
        before in 0..20_usize,
        mss: u16,
        frame_max in 0..2000_usize,
        ack: bool,
        finished: bool,
    ) {
        let model = syn(ipv4, tags, before, mss, ack);
        let field = if finished { Field::Complete } else { Field::PseudoHeader };
        let offload = if finished { Offload::default() } else { unfinished(&model) };
        let mut frame = model.build(field);
        let fits = frame_max.saturating_sub(model.l3() + if ipv4 { 40 } else { 60 });
        let lower = u16::try_from(fits).unwrap_or(u16::MAX);
        let expected = if lower > 0 && lower < mss { syn(ipv4, tags, before, lower, ack) } else { model };
        if let Some(clamp) = clamp(&frame, frame_max) {
            clamp.apply(&mut frame, &offload);
        }
        prop_assert_eq!(&frame, &expected.build(field));
        prop_assert_eq!(clamp(&frame, frame_max), None, "once is enough");
    }

    /// No frame makes it panic, nor does it change the length or anything but three words.
    #[test]
    fn any_frame(
        ipv4: bool,
        before in 0..20_usize,
        patches in proptest::collection::vec((0..100_usize, any::<u8>()), 0..6),
        keep in 0..120_usize,
        frame_max in 0..2000_usize,
        needs_csum: bool,
        csum_start: u16,
    ) {
        let mut frame = syn(ipv4, 0, before, 1460, false).build(Field::Complete);
        for (at, value) in patches {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(keep);
        let was = frame.clone();
        if let Some(clamp) = clamp(&frame, frame_max) {
            clamp.apply(&mut frame, &Offload { needs_csum, csum_start, csum_offset: 16, ..Offload::default() });
        }
        prop_assert!(was.iter().zip(&frame).filter(|(was, is)| was != is).count() <= 4);
    }
}
