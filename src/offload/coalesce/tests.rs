//! Each rule by name, and on generated frames: what was merged can be cut into what it was made of.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::batch::{Batch, FRAME_MAX};
use crate::offload::MIN_TCP_SEGMENT_BYTES;
use crate::offload::segment::{Checksum, Segmenter};
use crate::offload::tests::{Field, Model, cut, gso_models, kernel_takes, model};
use crate::wire::ethernet::{EtherType, Tag};

type Header = [u8; VNET_HDR_LEN];

/// Merges what can be merged, as a port does: the offload headers, the frames, and of how many each was made.
fn coalesce(frames: &[Vec<u8>]) -> Vec<(Header, Vec<u8>, usize)> {
    let mut buffer = vec![0xaa; VNET_HDR_LEN + FRAME_MAX];
    let mut results = vec![];
    let mut left = frames;
    while let Some((first, rest)) = left.split_first() {
        let mut coalescer = Coalescer::start(&mut buffer, first).expect("fits");
        let count = 1 + rest.iter().take_while(|frame| coalescer.push(frame)).count();
        let len = coalescer.finish();
        let (header, frame) = buffer.split_first_chunk().expect("long enough");
        results.push((*header, frame[..len].to_vec(), count));
        left = &left[count..];
    }
    results
}

/// Of how many frames each result is made.
fn counts(frames: &[Vec<u8>]) -> Vec<usize> {
    coalesce(frames).into_iter().map(|(_, _, count)| count).collect()
}

/// Cuts a merged frame, after seeing that everybody takes it as it is.
fn cut_again(header: &Header, frame: &[u8]) -> Vec<Vec<u8>> {
    assert!(kernel_takes(header, frame));
    let offload = Offload::from_virtio(header, frame.len()).expect("plausible");
    let (mut admitted, mut head) = (offload, frame.to_vec());
    admitted.admit(&mut head, frame.len()).expect("admitted");
    assert_eq!(admitted, offload);
    assert!(head == frame, "nothing was to be put right");
    let mut segmenter = Segmenter::new(frame, &offload, Checksum::Complete).expect("admitted");
    cut(&mut segmenter)
}

/// What a frame must be after being merged and cut again, `index` frames behind the first.
fn normal(frame: &[u8], first: &[u8], index: usize, fixed_id: bool) -> Vec<u8> {
    let layers = Layers::parse(frame).expect("merged");
    let mut frame = frame[..layers.l3 + layers.ip_len.expect("merged")].to_vec();
    if fixed_id {
        let ip = ipv4::Header::from_slice(&first[layers.l3..]).expect("merged");
        assert!(ip.dont_fragment());
        let header = frame[layers.l3..].first_chunk_mut().expect("merged");
        ipv4::set_id(header, ip.identification().wrapping_add(low16(index)));
        ipv4::fill_checksum(header);
    }
    frame
}

/// Nothing is lost, changed or put in another order.
fn check_lossless(frames: &[Vec<u8>]) {
    let mut left = frames;
    for (header, result, count) in coalesce(frames) {
        let (these, rest) = left.split_at(count);
        left = rest;
        if count == 1 {
            assert!(result == these[0] && header == [0; VNET_HDR_LEN], "alone but changed");
            continue;
        }
        let l3 = Layers::parse(&these[0]).expect("merged").l3;
        let fixed_id = these[0][l3] >> 4 == 4 && these[0][l3 + 4..l3 + 6] == these[1][l3 + 4..l3 + 6];
        let expected: Vec<_> = (these.iter().enumerate())
            .map(|(index, frame)| normal(frame, &these[0], index, fixed_id))
            .collect();
        assert!(cut_again(&header, &result) == expected, "cut into something else");
    }
    assert!(left.is_empty());
}

/// Makes a TCP frame's checksums right, whatever else is wrong with it.
fn seal(frame: &mut [u8]) {
    let Some(Layers { ipv4, l3, l4, ip_len: Some(ip_len), .. }) = Layers::parse(frame) else { return };
    if ipv4 {
        ipv4::fill_checksum(&mut frame[l3..l4]);
    }
    let addresses = if ipv4 { ipv4::field::ADDRS } else { ipv6::field::ADDRS };
    let pseudo_sum = Sum::of(&frame[at(l3, addresses)]).word(u16::from(protocol::TCP));
    let Some(segment) = frame.get_mut(l4..l3 + ip_len).filter(|segment| segment.len() >= 20) else { return };
    segment[tcp::field::CHECKSUM].fill(0);
    let checksum = pseudo_sum.word(low16(segment.len())).bytes(segment).checksum();
    segment[tcp::field::CHECKSUM].copy_from_slice(&checksum);
}

fn build(models: &[Model]) -> Vec<Vec<u8>> {
    models.iter().map(|model| model.build(Field::Complete)).collect()
}

/// Frames of these payload lengths, one behind the other.
fn flow(ipv4: bool, lens: &[usize]) -> Vec<Vec<u8>> {
    flow_of(with_options(ipv4, 12), lens)
}

fn with_options(ipv4: bool, len: usize) -> Model {
    Model { tcp_flags: tcp::ACK, tcp_options: vec![1; len], ..model(ipv4, true, 0) }
}

fn flow_of(mut next: Model, lens: &[usize]) -> Vec<Vec<u8>> {
    let segment = |&len: &usize| {
        next.payload = (0_u8..=255).cycle().take(len).collect();
        let frame = next.build(Field::Complete);
        next.seq = next.seq.wrapping_add(u32::try_from(len).expect("small"));
        next.id = next.id.wrapping_add(1);
        frame
    };
    lens.iter().map(segment).collect()
}

/// Where TCP begins in frames of [`flow`].
fn l4(ipv4: bool) -> usize {
    model(ipv4, true, 0).l4()
}

/// What can be merged whole: frame and segment size.
fn mergeable() -> impl Strategy<Value = (Model, u16)> {
    gso_models().prop_filter("TCP", |(model, _)| model.tcp).prop_map(|(mut model, size)| {
        model.ip_options.clear();
        model.extensions.clear();
        model.tcp_flags &= FLAGS;
        (model, size)
    })
}

/// Segments of some hundred bytes in all.
fn small_flows() -> impl Strategy<Value = (Model, Vec<Vec<u8>>)> {
    (mergeable(), 60_usize..900, 2_usize..7, any::<bool>()).prop_map(|((mut model, _), len, count, fixed)| {
        model.payload.truncate(len);
        let size =
            u16::try_from(model.payload.len().div_ceil(count).max(MIN_TCP_SEGMENT_BYTES)).expect("small");
        let mut segments = model.segments(size);
        if fixed {
            segments.iter_mut().for_each(|segment| segment.id = model.id);
        }
        (model, build(&segments))
    })
}

/// Something that happens to a list of frames on its way.
#[derive(Clone, Debug)]
enum Event {
    /// A byte of one frame changes to this value, most often in the headers; its checksums are made right again or not.
    Change {
        frame: Index,
        at: Index,
        in_headers: bool,
        value: u8,
        seal: bool,
    },
    Lose(Index),
    Repeat(Index),
    Swap(Index, Index),
    Pad(Index, u8),
    Cut(Index, Index),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let index = any::<Index>;
    let change =
        (index(), index(), prop::bool::weighted(0.8), any::<u8>(), prop::bool::weighted(0.8)).prop_map(
            |(frame, at, in_headers, value, seal)| Event::Change { frame, at, in_headers, value, seal },
        );
    let event = prop_oneof![
        6 => change,
        1 => index().prop_map(Event::Lose),
        1 => index().prop_map(Event::Repeat),
        1 => (index(), index()).prop_map(|(a, b)| Event::Swap(a, b)),
        2 => (index(), any::<u8>()).prop_map(|(frame, len)| Event::Pad(frame, len)),
        1 => (index(), index()).prop_map(|(frame, len)| Event::Cut(frame, len)),
    ];
    prop::collection::vec(event, 1..4)
}

fn happen(event: &Event, frames: &mut Vec<Vec<u8>>, headers_len: usize) {
    let count = frames.len();
    if count == 0 {
        return;
    }
    match event {
        Event::Change { frame, at, in_headers, value, seal: sealed } => {
            let frame = &mut frames[frame.index(count)];
            let window = if *in_headers { headers_len.min(frame.len()) } else { frame.len() };
            frame[at.index(window)] = *value;
            if *sealed {
                seal(frame);
            }
        }
        Event::Lose(frame) => drop(frames.remove(frame.index(count))),
        Event::Repeat(frame) => frames.push(frames[frame.index(count)].clone()),
        Event::Swap(a, b) => frames.swap(a.index(count), b.index(count)),
        Event::Pad(frame, len) => {
            let frame = &mut frames[frame.index(count)];
            let least = if len & 1 == 0 { frame.len() + usize::from(*len) } else { 60 };
            frame.resize(least.max(frame.len()), *len);
        }
        Event::Cut(frame, len) => {
            let frame = &mut frames[frame.index(count)];
            frame.truncate(1 + len.index(frame.len()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// The segments of a frame become that frame.
    #[test]
    fn merging_undoes_cutting((model, gso_size) in mergeable()) {
        let whole = model.build(Field::PseudoHeader);
        let offload = model.offload(gso_size);
        let mut segmenter = Segmenter::new(&whole, &offload, Checksum::Complete).expect("valid");
        let segments = cut(&mut segmenter);
        let mut header = [0; VNET_HDR_LEN];
        offload.to_virtio(&mut header);
        let results = coalesce(&segments);
        prop_assert_eq!(results.len(), 1);
        prop_assert!(results[0] == (header, whole, segments.len()));
        prop_assert!(cut_again(&header, &results[0].1) == segments);
    }

    /// A byte that changed on the way keeps its frame apart.
    #[test]
    fn a_broken_segment_stays_alone(
        (model, mut frames) in small_flows(), broken: Index, at: Index, in_headers: bool, change in 1_u8..,
    ) {
        let whole = frames.clone();
        let broken = broken.index(frames.len());
        let window = if in_headers { model.header_len() } else { frames[broken].len() };
        frames[broken][at.index(window)] ^= change;
        check_lossless(&frames);
        let sides = [&whole[..broken], &frames[broken..=broken], &whole[broken + 1..]];
        let expected: Vec<_> = sides.into_iter().flat_map(coalesce).collect();
        prop_assert!(coalesce(&frames) == expected);
    }

    /// Whatever happens to the frames, right checksums or not.
    #[test]
    fn nothing_is_lost((model, mut frames) in small_flows(), events in events()) {
        events.iter().for_each(|event| happen(event, &mut frames, model.header_len()));
        check_lossless(&frames);
    }

    #[test]
    fn noise_passes(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..5)) {
        prop_assert!(counts(&frames).iter().all(|&count| count == 1));
        check_lossless(&frames);
    }
}

#[test]
fn a_batch_takes_the_result() {
    let frames = flow(true, &[1000, 1000, 10]);
    let mut batch = Batch::default();
    let mut coalescer = Coalescer::start(batch.spare(), &frames[0]).expect("fits");
    assert!(coalescer.push(&frames[1]) && coalescer.push(&frames[2]));
    let len = coalescer.finish();
    batch.take(len, None).expect("taken");
    let frame = &batch.frames[0];
    assert_eq!((frame.segments, frame.offload.gso, frame.offload.gso_size), (3, Gso::Tcp4, 1000));
    assert_eq!(frame.len as usize, frames[0].len() + 1010);
}

#[test]
fn lengths_decide_where_a_frame_ends() {
    for ipv4 in [true, false] {
        let counts = |lens: &[usize]| counts(&flow(ipv4, lens));
        assert_eq!(counts(&[100; 5]), [5]);
        assert_eq!(counts(&[100, 100, 1, 100]), [3, 1], "a shorter one ends");
        assert_eq!(counts(&[100, 101, 101]), [1, 2], "a longer one begins");
        assert_eq!(counts(&[100, 0, 100]), [1, 1, 1], "an acknowledgment");
        assert_eq!(counts(&[0, 0, 100, 100]), [1, 1, 2]);
        assert_eq!(counts(&[36; 3]), [3]);
        assert_eq!(counts(&[35; 3]), [1; 3], "so small ones nobody takes in one piece");
        let options = |count| super::tests::counts(&flow_of(with_options(ipv4, 40), &vec![8; count]));
        assert_eq!(options(MAX_TCP_SEGMENTS + 2), [MAX_TCP_SEGMENTS, 2]);
        // The IP packet's last byte is number 65,535, or one more.
        let rest = 65_535 - (l4(ipv4) - 14 + 32) - 4 * 16_000;
        assert_eq!(counts(&[16_000, 16_000, 16_000, 16_000, rest]), [5]);
        assert_eq!(counts(&[16_000, 16_000, 16_000, 16_000, rest + 1]), [4, 1]);
    }
}

#[test]
fn headers_are_equal() {
    for (ipv4, tags) in [(true, 0), (true, 2), (false, 0), (false, 1)] {
        let tagged = |mut frame: Vec<u8>| {
            let tag = Tag { tpid: EtherType::VLAN, tci: 7 }.to_bytes();
            frame.splice(12..12, tag.repeat(tags));
            frame
        };
        let frames: Vec<_> = flow(ipv4, &[100; 3]).into_iter().map(tagged).collect();
        let l3 = 14 + 4 * tags;
        let tcp = l4(ipv4) + 4 * tags;
        assert_eq!(counts(&frames), [3]);
        let differs = |at: usize, bit: u8| {
            let mut frames = frames.clone();
            frames[1][at] ^= bit;
            seal(&mut frames[1]);
            check_lossless(&frames);
            counts(&frames) == [1, 1, 1]
        };
        let mut fields = vec![
            ("destination address", 0, 4),
            ("source address", 11, 1),
            ("source port", tcp, 1),
            ("destination port", tcp + 3, 1),
            ("sequence number", tcp + 7, 1),
            ("acknowledgment number", tcp + 11, 1),
            ("a reserved bit", tcp + 12, 1),
            ("data offset", tcp + 12, 0x10),
            ("window", tcp + 15, 1),
            ("urgent pointer", tcp + 19, 1),
            ("the first option", tcp + 20, 1),
            ("the last option", tcp + 31, 1),
        ];
        if tags > 0 {
            fields.extend([("VLAN", 15, 1), ("priority", 14, 0x20)]);
        }
        if ipv4 {
            fields.extend([
                ("TOS", l3 + 1, 1),
                ("identification", l3 + 5, 4),
                ("DF", l3 + 6, 0x40),
                ("more fragments", l3 + 6, 0x20),
                ("fragment offset", l3 + 7, 1),
                ("TTL", l3 + 8, 1),
                ("protocol", l3 + 9, 1),
                ("source", l3 + 12, 1),
                ("destination", l3 + 19, 1),
            ]);
        } else {
            fields.extend([
                ("traffic class", l3 + 1, 0x10),
                ("flow label", l3 + 3, 1),
                ("next header", l3 + 6, 1),
                ("hop limit", l3 + 7, 1),
                ("source", l3 + 8, 1),
                ("destination", l3 + 39, 1),
            ]);
        }
        for (name, at, bit) in fields {
            assert!(differs(at, bit), "{name}, IPv4 {ipv4}");
        }
    }
}

#[test]
fn flags_decide() {
    for ipv4 in [true, false] {
        let frames = flow(ipv4, &[100; 3]);
        let with = |flags: [u8; 3]| {
            let mut frames = frames.clone();
            for (frame, flags) in frames.iter_mut().zip(flags) {
                frame[l4(ipv4) + tcp::field::FLAGS] = flags;
                seal(frame);
            }
            check_lossless(&frames);
            counts(&frames)
        };
        const ACK: u8 = tcp::ACK;
        const ECE: u8 = ACK | tcp::ECE;
        assert_eq!(with([ACK; 3]), [3]);
        assert_eq!(with([ECE; 3]), [3]);
        assert_eq!(with([ACK, ACK, ECE]), [2, 1]);
        assert_eq!(with([ECE, ACK, ACK]), [1, 2]);
        assert_eq!(with([0, ACK, ACK]), [1, 2]);
        for end in [tcp::PSH, tcp::FIN, ENDS] {
            assert_eq!(with([ACK, ACK, ACK | end]), [3]);
            assert_eq!(with([ACK, ACK | end, ACK]), [2, 1]);
            assert_eq!(with([ACK | end, ACK, ACK]), [1, 2]);
        }
        for other in [0x02, 0x04, 0x20, tcp::CWR] {
            assert_eq!(with([ACK | other; 3]), [1, 1, 1], "{other:#x}");
            assert_eq!(with([ACK | other, ACK, ACK]), [1, 2], "{other:#x}");
            assert_eq!(with([ACK, ACK, ACK | other]), [2, 1], "{other:#x}");
        }
    }
}

#[test]
fn identification_counts_up_or_stays() {
    let frames = flow(true, &[100; 4]);
    let with = |ids: [u16; 4], dont_fragment: bool| {
        let mut frames = frames.clone();
        for (frame, id) in frames.iter_mut().zip(ids) {
            frame[18..20].copy_from_slice(&id.to_be_bytes());
            frame[20] = if dont_fragment { 0x40 } else { 0 };
            seal(frame);
        }
        check_lossless(&frames);
        counts(&frames)
    };
    for dont_fragment in [true, false] {
        assert_eq!(with([65_534, 65_535, 0, 1], dont_fragment), [4]);
        assert_eq!(with([5, 6, 8, 9], dont_fragment), [2, 2]);
        assert_eq!(with([5, 4, 3, 2], dont_fragment), [1, 1, 1, 1]);
    }
    assert_eq!(with([0; 4], true), [4]);
    assert_eq!(with([5; 4], false), [1, 1, 1, 1]);
    assert_eq!(with([5, 5, 6, 7], true), [2, 2], "first the one, then the other");
    assert_eq!(with([5, 6, 6, 6], true), [2, 2]);
}

#[test]
fn only_plain_tcp_is_merged() {
    let alone = |model: Model| {
        let frames = build(&model.segments(100));
        check_lossless(&frames);
        counts(&frames) == [1, 1, 1]
    };
    let tcp4 = Model { tcp_flags: tcp::ACK, ..model(true, true, 300) };
    let tcp6 = Model { tcp_flags: tcp::ACK, ..model(false, true, 300) };
    assert!(!alone(tcp4.clone()) && !alone(tcp6.clone()));
    assert!(alone(Model { ip_options: vec![1; 4], ..tcp4 }));
    assert!(alone(Model { extensions: vec![(60, vec![1, 4, 0, 0, 0, 0])], ..tcp6 }));
    assert!(alone(model(true, false, 300)), "UDP");
    for (ipv4, at, value, name) in [
        (true, 20, 0x60, "more fragments"),
        (true, 21, 1, "fragment offset"),
        (true, 23, 253, "protocol"),
        (false, 20, 253, "next header"),
    ] {
        let mut frames = flow(ipv4, &[100; 3]);
        for frame in &mut frames {
            frame[at] = value;
            seal(frame);
        }
        assert_eq!(counts(&frames), [1, 1, 1], "{name}");
    }
}

#[test]
fn checksums_are_verified() {
    for ipv4 in [true, false] {
        let frames = flow(ipv4, &[100; 3]);
        let tcp_checksum = l4(ipv4) + tcp::field::CHECKSUM.start;
        let fields = [tcp_checksum, l4(ipv4) + 131].into_iter().chain(ipv4.then_some(24));
        for (at, broken) in fields.flat_map(|at| (0..3).map(move |broken| (at, broken))) {
            let mut frames = frames.clone();
            frames[broken][at] ^= 1;
            check_lossless(&frames);
            let expected: &[usize] = [&[1, 2][..], &[1, 1, 1], &[2, 1]][broken];
            assert_eq!(counts(&frames), expected, "byte {at} of {broken}");
        }
    }
}

/// Its sum is right, but a segmenter writes the other zero.
#[test]
fn the_other_zero_is_not_merged() {
    let mut frames = flow(true, &[100, 100]);
    let end = frames[1].len();
    frames[1][end - 2..].fill(0);
    seal(&mut frames[1]);
    let [a, b] = [frames[1][50], frames[1][51]];
    frames[1][end - 2..].copy_from_slice(&[a, b]);
    seal(&mut frames[1]);
    assert_eq!(frames[1][50..52], [0, 0]);
    assert_eq!(counts(&frames), [2]);
    frames[1][50..52].fill(0xff);
    assert_eq!(counts(&frames), [1, 1]);
}

#[test]
fn padding_is_left_out() {
    let bare = Model { tcp_flags: tcp::ACK, tcp_options: vec![], ..model(true, true, 100) };
    let padded = |frames: &[Vec<u8>], len: usize| {
        let mut frames = frames.to_vec();
        frames.iter_mut().for_each(|frame| frame.resize(len.max(frame.len()), 0x55));
        check_lossless(&frames);
        coalesce(&frames)
    };
    // Only the last is short enough to be padded.
    let frames = build(&bare.segments(48));
    let whole = coalesce(&frames);
    assert_eq!(whole.len(), 1);
    assert!(padded(&frames, 60) == whole);
    assert_eq!(padded(&frames, 61).len(), 2, "too long for padding");
    assert_eq!(padded(&frames[2..], 60)[0].1.len(), 60, "alone");

    let frames = flow(false, &[100, 100]);
    assert_eq!(padded(&frames, frames[0].len() + 1).len(), 2);
    let mut cut_short = frames.clone();
    cut_short[1].truncate(frames[0].len() - 1);
    assert_eq!(counts(&cut_short), [1, 1]);
}

#[test]
fn the_buffer_is_the_limit() {
    let frames = flow(true, &[100, 100]);
    let len = VNET_HDR_LEN + frames[0].len();
    assert!(Coalescer::start(&mut [], &[]).is_none());
    assert!(Coalescer::start(&mut vec![0; len - 1], &frames[0]).is_none());
    for (room, fits) in [(0, false), (99, false), (100, true)] {
        let mut buffer = vec![0xaa; len + room];
        let mut coalescer = Coalescer::start(&mut buffer, &frames[0]).expect("fits");
        assert_eq!(coalescer.push(&frames[1]), fits);
        let frame_len = coalescer.finish();
        if !fits {
            assert!(buffer[..VNET_HDR_LEN] == [0; VNET_HDR_LEN]);
            assert!(buffer[VNET_HDR_LEN..][..frame_len] == frames[0]);
            assert!(buffer[len..].iter().all(|&byte| byte == 0xaa));
        }
    }
    let mut empty = [0xaa; VNET_HDR_LEN];
    let mut coalescer = Coalescer::start(&mut empty, &[]).expect("fits");
    assert!(!coalescer.push(&[]) && !coalescer.push(&frames[0]));
    assert_eq!(coalescer.finish(), 0);
}

/// A frame that was refused does not stop the flow.
#[test]
fn a_refusal_changes_nothing() {
    let frames = flow(false, &[100; 4]);
    let mut buffer = vec![0; VNET_HDR_LEN + FRAME_MAX];
    let mut coalescer = Coalescer::start(&mut buffer, &frames[0]).expect("fits");
    for (index, frame) in frames.iter().enumerate() {
        let pushed = [coalescer.push(frame), coalescer.push(frame)];
        assert_eq!(pushed, [index != 0, false]);
        assert!(!coalescer.push(&[]) && !coalescer.push(&frame[..50]));
    }
    let len = coalescer.finish();
    assert!(coalesce(&frames)[0].1 == buffer[VNET_HDR_LEN..][..len]);
}
