//! Small GGUF files made in memory, right or wrong on purpose. Written from the format's page, apart from the loader.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test file uses its own part

use std::path::Path;

use tandem_loader::{Error, Gguf, Result};

pub const U8: u32 = 0;
pub const U32: u32 = 4;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;

/// A tensor to write.
#[derive(Clone)]
pub struct Tensor {
    pub name: Vec<u8>,
    pub dims: Vec<u64>,
    pub ty: u32,
    /// Offset in the data section; `None` for the next aligned place.
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

/// A file to write. Every count can be made to lie.
#[derive(Clone)]
pub struct Builder {
    pub magic: [u8; 4],
    pub version: u32,
    pub alignment: usize,
    pub n_tensors: Option<u64>,
    pub n_kv: Option<u64>,
    pub kv: Vec<(Vec<u8>, u32, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
}

/// A length-prefixed string.
pub fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// An array value: element type, length, elements.
pub fn array(element: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}

impl Builder {
    /// A version 3 file with nothing in it.
    pub fn new() -> Builder {
        Builder {
            magic: *b"GGUF",
            version: 3,
            alignment: 32,
            n_tensors: None,
            n_kv: None,
            kv: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// A file with a value of every type and tensors of four types.
    pub fn sample() -> Builder {
        let scalars: [(u32, &[u8]); 11] = [
            (0, &[200]),
            (1, &[0x80]),
            (2, &60_000u16.to_le_bytes()),
            (3, &(-300i16).to_le_bytes()),
            (4, &4_000_000_000u32.to_le_bytes()),
            (5, &(-5i32).to_le_bytes()),
            (6, &1.5f32.to_le_bytes()),
            (7, &[1]),
            (10, &u64::MAX.to_le_bytes()),
            (11, &i64::MIN.to_le_bytes()),
            (12, &(-0.1f64).to_le_bytes()),
        ];
        let mut file = Builder::new().str("general.architecture", "llama");
        for (ty, bytes) in scalars {
            file = file.value(format!("scalar.{ty}"), ty, bytes.to_vec());
        }
        let tokens = [string("a"), string(""), string([0xff, 0xfe])].concat();
        file.value("tokens", ARRAY, array(STRING, 3, &tokens))
            .value("scores", ARRAY, array(F32, 2, &[1.0f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat()))
            .value("none", ARRAY, array(STRING, 0, &[]))
            .value("no_numbers", ARRAY, array(U32, 0, &[]))
            .str("empty", "")
            .tensor("f32", &[2, 3], 0, (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect())
            .tensor("q8_0", &[64, 2], 8, vec![1; 4 * 34])
            .tensor("q4_k", &[256], 12, vec![0; 144])
            .tensor("i64", &[1, 1, 1, 2], 27, vec![7; 16])
    }

    pub fn value(mut self, key: impl AsRef<[u8]>, ty: u32, bytes: Vec<u8>) -> Builder {
        self.kv.push((key.as_ref().to_vec(), ty, bytes));
        self
    }

    pub fn str(self, key: &str, text: impl AsRef<[u8]>) -> Builder {
        self.value(key, STRING, string(text))
    }

    pub fn u32(self, key: &str, value: u32) -> Builder {
        self.value(key, U32, value.to_le_bytes().to_vec())
    }

    /// Sets `general.alignment` and lays the tensors out by it.
    pub fn align(mut self, alignment: u32) -> Builder {
        self.alignment = alignment as usize;
        self.u32("general.alignment", alignment)
    }

    pub fn tensor(self, name: impl AsRef<[u8]>, dims: &[u64], ty: u32, data: Vec<u8>) -> Builder {
        self.tensor_at(name, dims, ty, None, data)
    }

    pub fn tensor_at(
        mut self,
        name: impl AsRef<[u8]>,
        dims: &[u64],
        ty: u32,
        offset: impl Into<Option<u64>>,
        data: Vec<u8>,
    ) -> Builder {
        let name = name.as_ref().to_vec();
        self.tensors.push(Tensor { name, dims: dims.to_vec(), ty, offset: offset.into(), data });
        self
    }

    /// The file's header, up to and without the padding before the data, and the data section.
    pub fn sections(&self) -> (Vec<u8>, Vec<u8>) {
        let mut header = self.magic.to_vec();
        header.extend(self.version.to_le_bytes());
        header.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        header.extend(self.n_kv.unwrap_or(self.kv.len() as u64).to_le_bytes());
        for (key, ty, bytes) in &self.kv {
            header.extend(string(key));
            header.extend(ty.to_le_bytes());
            header.extend(bytes);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            header.extend(string(&tensor.name));
            header.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|d| header.extend(d.to_le_bytes()));
            header.extend(tensor.ty.to_le_bytes());
            pad(&mut data, self.alignment);
            header.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
        }
        (header, data)
    }

    pub fn build(&self) -> Vec<u8> {
        let (mut file, data) = self.sections();
        if !self.tensors.is_empty() {
            pad(&mut file, self.alignment);
        }
        file.extend(data);
        file
    }

    pub fn open(&self) -> Result<Gguf> {
        open(self.build())
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.build()).unwrap();
    }
}

fn pad(bytes: &mut Vec<u8>, alignment: usize) {
    bytes.resize(bytes.len().next_multiple_of(alignment.max(1)), 0);
}

pub fn open(bytes: Vec<u8>) -> Result<Gguf> {
    Gguf::from_bytes("test.gguf".as_ref(), bytes)
}

/// Where `needle` first is in `bytes`.
pub fn find(bytes: &[u8], needle: &str) -> usize {
    bytes.windows(needle.len()).position(|w| w == needle.as_bytes()).unwrap()
}

/// Checks that the file is refused for `field` at byte `offset`, in a message with `words`.
#[track_caller]
pub fn refused(result: Result<Gguf>, field: &str, offset: usize, words: &str) {
    match result {
        Ok(_) => panic!("was opened; expected {field}: {words}"),
        Err(Error::Malformed { path, field: got, message, offset: at }) => {
            assert_eq!((got.as_str(), at), (field, offset as u64), "{message}");
            assert!(message.contains(words), "{message:?} does not say {words:?}");
            assert_eq!(path, Path::new("test.gguf"));
        }
        Err(other) => panic!("refused for another reason: {other}"),
    }
}

/// Reads everything that the file offers, as a program would.
pub fn use_all(gguf: &Gguf) -> usize {
    let mut seen = gguf.file_bytes() as usize;
    for (key, value) in gguf.metadata().iter() {
        seen += key.len() + value.to_string().len();
        if let tandem_loader::Value::Array(array) = value {
            seen += array.values().count();
            assert_eq!(array.values().count(), array.len());
            if let Some(strings) = array.strings() {
                assert_eq!(strings.len(), array.len());
                seen += strings.map(<[u8]>::len).sum::<usize>();
            }
        }
        let _ = (gguf.metadata().f32_array(key), gguf.metadata().i32_array(key), gguf.metadata().u32(key));
    }
    for tensor in gguf.tensors() {
        assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
        assert_eq!(gguf.data(tensor).len(), tensor.n_bytes());
        assert_eq!(tensor.row_len() * tensor.n_rows(), tensor.n_elements());
        seen += gguf.dequantize(tensor).map_or(0, |w| w.len());
        gguf.prefetch(tensor);
        gguf.forget(tensor, 0..tensor.n_bytes());
    }
    seen
}
