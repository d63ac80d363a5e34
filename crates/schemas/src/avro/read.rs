//! Avro's bytes, read according to a schema and written as JSON.

use num_bigint::BigInt;
use uuid::Uuid;

use super::{Avro, DECIMAL_MAX, DEPTH_MAX, Length, Type};

/// The most values that may take no bytes, such as nulls: a list states its length, which could be
/// billions.
const EMPTY_MAX: usize = 100_000;

impl Avro {
    /// Converts a payload, without the registry's prefix, to JSON.
    ///
    /// # Errors
    /// It does not fit this schema; the error says where and why.
    pub(crate) fn read(&self, payload: &[u8]) -> Result<Vec<u8>, String> {
        let mut reader = Reader {
            types: &self.types,
            all: payload.len(),
            left: payload,
            empty: 0,
            json: Vec::new(),
        };
        let read = reader.value(self.root, 0).and_then(|()| match reader.left.len() {
            0 => Ok(()),
            left => Err(format!("{left} bytes stand behind the value")),
        });
        match read {
            Ok(()) => Ok(reader.json),
            Err(why) => {
                let at = reader.all - reader.left.len();
                Err(format!("the payload is not of its schema: byte {at} of {}: {why}", reader.all))
            }
        }
    }
}

struct Reader<'a> {
    types: &'a [Type],
    /// How many bytes there are, and which are left.
    all: usize,
    left: &'a [u8],
    /// How many values have taken no byte.
    empty: usize,
    json: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn value(&mut self, of: usize, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(format!("it is nested deeper than {DEPTH_MAX}"));
        }
        let before = self.left.len();
        let types = self.types;
        self.any(&types[of], depth)?;
        self.empty += usize::from(self.left.len() == before);
        match self.empty > EMPTY_MAX {
            true => Err(format!("more than {EMPTY_MAX} values take no byte")),
            false => Ok(()),
        }
    }

    fn any(&mut self, of: &'a Type, depth: usize) -> Result<(), String> {
        match of {
            Type::Null => self.json.extend(b"null"),
            Type::Boolean => match self.take(1)?[0] {
                0 => self.json.extend(b"false"),
                1 => self.json.extend(b"true"),
                other => return Err(format!("expected a boolean, found the byte {other}")),
            },
            Type::Int | Type::Long | Type::Float | Type::Double => return self.number(of),
            Type::Text => {
                let text = self.text()?;
                self.write(text)?;
            }
            Type::Bytes(length) | Type::Uuid(length) | Type::Decimal { length, .. } => {
                let bytes = self.bytes(*length)?;
                return self.of_bytes(of, bytes);
            }
            Type::Enum(symbols) => {
                let symbol = self.one_of(symbols, "symbols")?;
                self.write(symbol)?;
            }
            Type::List(items) => {
                self.blocks(b'[', b']', |reader| reader.value(*items, depth + 1))?
            }
            Type::Map(values) => self.blocks(b'{', b'}', |reader| {
                let key = reader.text()?;
                reader.write(key)?;
                reader.json.push(b':');
                reader.value(*values, depth + 1)
            })?,
            Type::Union(branches) => {
                let branch = *self.one_of(branches, "types")?;
                self.value(branch, depth)?;
            }
            Type::Record(record) => {
                for (at, field) in record.fields.iter().enumerate() {
                    self.json.push(if at == 0 { b'{' } else { b',' });
                    self.write(&field.name)?;
                    self.json.push(b':');
                    self.value(field.of, depth + 1)
                        .map_err(|why| format!("`{}`: {why}", field.name))?;
                }
                self.json.extend(if record.fields.is_empty() { &b"{}"[..] } else { b"}" });
            }
        }
        Ok(())
    }

    fn number(&mut self, of: &Type) -> Result<(), String> {
        match of {
            Type::Float => {
                let bytes = self.array()?;
                self.write(&f32::from_le_bytes(bytes))
            }
            Type::Double => {
                let bytes = self.array()?;
                self.write(&f64::from_le_bytes(bytes))
            }
            _ => {
                let number = self.long()?;
                if matches!(of, Type::Int) && i32::try_from(number).is_err() {
                    return Err(format!("{number} is no int"));
                }
                self.write(&number)
            }
        }
    }

    /// Converts bytes of a type.
    fn of_bytes(&mut self, of: &Type, bytes: &[u8]) -> Result<(), String> {
        match of {
            Type::Uuid(_) => {
                let uuid = Uuid::from_slice(bytes).map_err(|error| error.to_string())?;
                self.write(&uuid.to_string())
            }
            Type::Decimal { scale, .. } => self.write(&decimal(bytes, *scale)?),
            _ => self.write(bytes),
        }
    }

    /// The items of a list or a map: blocks, each with its number of items, until one has none.
    fn blocks(
        &mut self,
        open: u8,
        close: u8,
        mut item: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        self.json.push(open);
        let mut first = true;
        loop {
            let mut count = self.long()?;
            if count == 0 {
                break;
            }
            if count < 0 {
                // The block's size in bytes follows, for readers that skip it.
                self.long()?;
                count = count.checked_neg().ok_or("a block has no number of items")?;
            }
            for _ in 0..count {
                if !std::mem::take(&mut first) {
                    self.json.push(b',');
                }
                item(self)?;
            }
        }
        self.json.push(close);
        Ok(())
    }

    /// One of several, by its number.
    fn one_of<T>(&mut self, all: &'a [T], what: &str) -> Result<&'a T, String> {
        let number = self.long()?;
        let one = usize::try_from(number).ok().and_then(|at| all.get(at));
        one.ok_or_else(|| format!("expected one of {} {what}, found number {number}", all.len()))
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let bytes = self.bytes(Length::Told)?;
        std::str::from_utf8(bytes).map_err(|error| format!("a text is not UTF-8: {error}"))
    }

    fn bytes(&mut self, length: Length) -> Result<&'a [u8], String> {
        let length = match length {
            Length::Always(length) => length,
            Length::Told => {
                let told = self.long()?;
                usize::try_from(told).map_err(|_| format!("{told} is no length"))?
            }
        };
        self.take(length)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let Some((taken, left)) = self.left.split_at_checked(length) else {
            return Err(format!("{length} bytes are to follow, and {} do", self.left.len()));
        };
        self.left = left;
        Ok(taken)
    }

    /// A whole number: seven bits per byte, lowest first; the lowest bit of all is the sign.
    fn long(&mut self) -> Result<i64, String> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                #[expect(clippy::cast_possible_wrap, reason = "that is how signs are written")]
                return Ok((number >> 1) as i64 ^ -((number & 1) as i64));
            }
        }
        Err("a number has more than 64 bits".to_owned())
    }

    fn write<T: serde::Serialize + ?Sized>(&mut self, value: &T) -> Result<(), String> {
        serde_json::to_writer(&mut self.json, value).map_err(|error| error.to_string())
    }
}

/// A decimal in the usual notation.
fn decimal(bytes: &[u8], scale: usize) -> Result<String, String> {
    if !(1..=DECIMAL_MAX).contains(&bytes.len()) {
        return Err(format!(
            "expected a decimal of 1 to {DECIMAL_MAX} bytes, found {}",
            bytes.len()
        ));
    }
    let unscaled = BigInt::from_signed_bytes_be(bytes);
    let digits = unscaled.magnitude().to_string();
    let sign = if unscaled.sign() == num_bigint::Sign::Minus { "-" } else { "" };
    if scale == 0 {
        return Ok(format!("{sign}{digits}"));
    }
    if scale > DECIMAL_MAX {
        return Err(format!("a decimal has {scale} places, and {DECIMAL_MAX} can be read"));
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, places) = digits.split_at(digits.len() - scale);
    Ok(format!("{sign}{whole}.{places}"))
}
