//! Requests and answers of the VDE switch protocol, whatever has come of them.

#![allow(missing_docs)]

use vswitch::port::vde::protocol::{REQUEST_LEN, address, request, request_for};

/// A path, a description, which byte is another, noise behind it.
type Input = (String, String, Option<(u8, u8)>, Vec<u8>);

/// Never a panic; more bytes change nothing that was said of fewer, but that there were too few.
#[test]
fn requests_are_harmless() {
    bolero::check!().with_type::<Input>().with_iterations(2000).for_each(|(path, text, spoilt, noise)| {
        let mut bytes = request_for(format!("/{path}").as_ref(), text);
        if let Some((at, other)) = spoilt {
            let at = usize::from(*at) % bytes.len();
            bytes[at] = *other;
        }
        for bytes in [&bytes, noise, &[&bytes[..], noise].concat()] {
            let mut before = Ok(None);
            for len in 0..=bytes.len() {
                let now = request(&bytes[..len]);
                assert!(before == Ok(None) || now == before, "{before:?}, then {now:?}");
                assert!(len < REQUEST_LEN || now != Ok(None), "it is all there");
                assert!(now.is_err() || now.is_ok_and(|path| path.is_none_or(|path| path.is_absolute())));
                before = now;
            }
            let _ = address(bytes);
        }
    });
}
