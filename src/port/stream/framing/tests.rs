#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::offload::VNET_HDR_LEN;

fn encode(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = Vec::new();
    for frame in frames {
        stream.extend(u32::try_from(frame.len()).unwrap().to_be_bytes());
        stream.extend(frame);
    }
    stream
}

/// Frames of a stream that comes in pieces of these lengths, again and again, and whether it broke.
fn decode(mut stream: &[u8], pieces: &[usize]) -> (Vec<Vec<u8>>, bool) {
    let (mut deframer, mut frames) = (Deframer::default(), Vec::new());
    let mut pieces = pieces.iter().cycle();
    loop {
        loop {
            match deframer.next_frame() {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => break,
                Err(BadLength) => return (frames, true),
            }
        }
        if stream.is_empty() {
            return (frames, false);
        }
        let spare = deframer.spare();
        assert!(!spare.is_empty(), "it would never go on");
        let len = spare.len().min(stream.len()).min(*pieces.next().unwrap());
        spare[..len].copy_from_slice(&stream[..len]);
        deframer.filled(len);
        stream = &stream[len..];
    }
}

fn frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let len = prop_oneof![4 => 1..100usize, 2 => 1000..2000usize, 1 => FRAME_LEN_MAX - 3..=FRAME_LEN_MAX];
    vec((len, any::<u8>()), 0..20)
        .prop_map(|all| all.into_iter().map(|(len, fill)| vec![fill; len]).collect())
}

/// A frame in the forms in which egress hands it over.
fn outgoing(bytes: &[u8], form: usize) -> Outgoing<'_> {
    let frame = &bytes[VNET_HDR_LEN..];
    match form {
        1 => Outgoing::Segment {
            head: &bytes[..VNET_HDR_LEN + frame.len() / 2],
            payload: &frame[frame.len() / 2..],
        },
        2 if frame.len() > 16 => Outgoing::Pieces {
            header: [0; VNET_HDR_LEN],
            addresses: &frame[..12],
            tag: frame[12..].first_chunk().copied(),
            rest: &frame[16..],
            segments: 1,
        },
        _ => Outgoing::Whole { bytes, segments: 1 },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However a stream is cut into reads, the same frames come out.
    #[test]
    fn any_pieces_give_the_same_frames(frames in frames(), pieces in vec(1..100_000usize, 1..20)) {
        prop_assert_eq!(decode(&encode(&frames), &pieces), (frames, false));
    }

    /// However little is written at once, what arrives are whole frames in order, each of those that were counted as sent.
    #[test]
    fn no_frame_is_cut(
        frames in frames(),
        room in vec(prop_oneof![Just(None), (1..100_000usize).prop_map(Some)], 1..30),
        burst in 1..10usize,
    ) {
        let (mut outbound, counters, mut stream) = (Outbound::default(), Counters::default(), Vec::new());
        let mut room = room.into_iter().chain(std::iter::repeat(Some(usize::MAX)));
        let mut write = |slices: &[IoSlice<'_>]| {
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let Some(len) = room.next().unwrap() else { return Ok(None) };
            stream.extend(&all[..len.min(all.len())]);
            Ok(Some(len.min(all.len())))
        };
        let bytes: Vec<Vec<u8>> = frames.iter().map(|frame| [&[0; VNET_HDR_LEN], &frame[..]].concat()).collect();
        for (number, burst) in bytes.chunks(burst).enumerate() {
            let burst: Vec<Outgoing<'_>> =
                burst.iter().enumerate().map(|(i, bytes)| outgoing(bytes, (number + i) % 3)).collect();
            outbound.send(&burst, &counters, &mut write);
        }
        while !outbound.flush(&mut write).unwrap() {}
        let (arrived, broken) = decode(&stream, &[usize::MAX]);
        prop_assert!(!broken);
        prop_assert_eq!(arrived.len() as u64, counters.tx_frames.get());
        let dropped = counters.drops(DropReason::TxFull);
        prop_assert_eq!(counters.tx_frames.get() + dropped, frames.len() as u64);
        let mut left = frames.iter();
        prop_assert!(arrived.iter().all(|frame| left.any(|sent| sent == frame)), "in order, none made up");
    }

    /// Any bytes: frames of a good length, or the end.
    #[test]
    fn garbage_is_frames_or_the_end(bytes in vec(any::<u8>(), 0..5000), pieces in vec(1..5000usize, 1..5)) {
        let (frames, _) = decode(&bytes, &pieces);
        prop_assert!(frames.iter().all(|frame| (1..=FRAME_LEN_MAX).contains(&frame.len())));
    }
}

#[test]
fn lengths_that_no_frame_has_end_it() {
    for len in [0, FRAME_LEN_MAX + 1, 0x1_0000_0000 - 1] {
        let mut stream = encode(&[vec![7; 60]]);
        stream.extend(u32::try_from(len).unwrap().to_be_bytes());
        assert_eq!(decode(&stream, &[3]), (vec![vec![7; 60]], true), "{len}");
    }
    assert_eq!(decode(&encode(&[vec![1; FRAME_LEN_MAX]]), &[1000]), (vec![vec![1; FRAME_LEN_MAX]], false));
}

#[test]
fn a_broken_connection_is_counted() {
    let (mut outbound, counters) = (Outbound::default(), Counters::default());
    let bytes = [0; 100];
    let frames = [outgoing(&bytes, 0), outgoing(&bytes, 0)];
    outbound.send(&frames, &counters, |_| Err(io::ErrorKind::BrokenPipe.into()));
    assert_eq!((counters.drops(DropReason::PortDown), counters.tx_frames.get()), (2, 0));
    outbound.send(&frames, &counters, |_| Ok(Some(10)));
    assert!(outbound.is_stuck());
    assert_eq!((counters.tx_frames.get(), counters.drops(DropReason::TxFull)), (1, 1));
    outbound.send(&frames, &counters, |_| Ok(None));
    assert_eq!(counters.drops(DropReason::TxFull), 3);
}
