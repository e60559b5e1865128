//! Scalar decoders against ggml's own output, bit for bit.

use serde_json::Value;
use tandem_loader::{GgmlType, quant};

#[test]
fn decoders_equal_ggml_bit_for_bit() {
    let Some(dir) = tandem_tests::fixtures("quants") else { return };
    let manifest: Value = serde_json::from_slice(&std::fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let mut checked = 0;
    for entry in manifest["types"].as_array().unwrap() {
        let ty = GgmlType::from_id(entry["type_id"].as_u64().unwrap() as u32).unwrap();
        assert_eq!(ty.name(), entry["type"].as_str().unwrap());
        assert_eq!(ty.block_size() as u64, entry["block_size"].as_u64().unwrap(), "{ty}");
        assert_eq!(ty.block_bytes() as u64, entry["bytes_per_block"].as_u64().unwrap(), "{ty}");
        let Some(decode) = quant::decode_fn(ty) else { continue };
        let blocks = std::fs::read(dir.join(entry["bin"].as_str().unwrap())).unwrap();
        let expected = std::fs::read(dir.join(entry["f32"].as_str().unwrap())).unwrap();
        let mut out = vec![f32::NAN; expected.len() / 4];
        decode(&blocks, &mut out);
        for (i, (got, want)) in out.iter().zip(expected.as_chunks::<4>().0).enumerate() {
            assert_eq!(got.to_le_bytes(), *want, "{ty} weight {i}: {got} against {}", f32::from_le_bytes(*want));
        }
        checked += 1;
    }
    assert!(checked == 27, "only {checked} types checked");
}
