//! Frames in a byte stream, against the plainest reading of it.

#![allow(missing_docs)]

use vswitch::port::stream::framing::{BadLength, Deframer, FRAME_LEN_MAX};

/// Lengths with their frames' bytes, noise behind them, and the lengths of the pieces in which all of it comes.
type Input = (Vec<(u32, u16)>, Vec<u8>, Vec<u16>);

/// Never a panic, never stuck; the same frames and the same end as when all of it is there at once.
#[test]
fn streams_are_harmless() {
    bolero::check!().with_type::<Input>().with_iterations(2000).for_each(|(frames, noise, pieces)| {
        let mut stream = Vec::new();
        for (len, bytes) in frames {
            // Most are short, and honest.
            let bytes = if bytes & 0x1f == 0 { *bytes } else { bytes & 0x1ff };
            let len = if len & 7 == 0 { *len } else { u32::from(bytes) };
            stream.extend(len.to_be_bytes());
            stream.resize(stream.len() + usize::from(bytes), 0x5a);
        }
        stream.extend(noise);
        assert_eq!(read(&stream, pieces), plainly(&stream));
    });
}

fn read(mut stream: &[u8], pieces: &[u16]) -> (Vec<Vec<u8>>, bool) {
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
        let most = pieces.next().map_or(usize::MAX, |len| usize::from(*len).max(1));
        let len = most.min(stream.len()).min(spare.len());
        assert!(len > 0, "stuck");
        spare[..len].copy_from_slice(&stream[..len]);
        deframer.filled(len);
        stream = &stream[len..];
    }
}

fn plainly(mut stream: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut frames = Vec::new();
    while let Some((len, rest)) = stream.split_first_chunk() {
        let len = u32::from_be_bytes(*len) as usize;
        if len == 0 || len > FRAME_LEN_MAX {
            return (frames, true);
        }
        let Some(frame) = rest.get(..len) else { break };
        frames.push(frame.to_vec());
        stream = &rest[len..];
    }
    (frames, false)
}
