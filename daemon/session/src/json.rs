//! Protobuf messages as JSON, in the two shapes that travel.
//!
//! Error details carry what Go's `encoding/json` makes of the generated
//! structs: proto field names, zero values left out, numbers as numbers, bytes
//! in base64, and three messages with shapes of their own because of their
//! `oneof`s. One detail, `errdefs.Solve`, carries canonical protobuf JSON.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MapKey, MessageDescriptor, ReflectMessage, Value};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

/// The message types of this program. Built from constant data.
static POOL: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(proto::DESCRIPTORS).ok());

fn descriptor(name: &str) -> Option<MessageDescriptor> {
    POOL.as_ref()?.get_message_by_name(name)
}

fn dynamic(name: &str, message: &impl Message) -> Option<DynamicMessage> {
    DynamicMessage::decode(descriptor(name)?, message.encode_to_vec().as_slice()).ok()
}

/// The message called `name` as Go's `encoding/json` writes it; `None` when
/// the two do not go together.
pub fn encode_go(name: &str, message: &impl Message) -> Option<Vec<u8>> {
    base::gojson::to_vec(&Go(&dynamic(name, message)?)).ok()
}

/// As [`encode_go`], indented by two spaces.
pub fn encode_go_indent(name: &str, message: &impl Message) -> Option<Vec<u8>> {
    base::gojson::to_vec_indent(&Go(&dynamic(name, message)?)).ok()
}

/// The message called `name` as canonical protobuf JSON.
pub fn encode_canonical(name: &str, message: &impl Message) -> Option<Vec<u8>> {
    serde_json::to_vec(&dynamic(name, message)?).ok()
}

/// Reads the message called `name` from either shape. Unknown fields are passed over.
pub fn decode<M: Message + Default>(name: &str, json: &[u8]) -> Option<M> {
    let options = prost_reflect::DeserializeOptions::new().deny_unknown_fields(false);
    let mut reader = serde_json::Deserializer::from_slice(json);
    let message = DynamicMessage::deserialize_with_options(descriptor(name)?, &mut reader, &options).ok()?;
    M::decode(message.encode_to_vec().as_slice()).ok()
}

struct Go<'a>(&'a DynamicMessage);

impl Go<'_> {
    /// The struct field that Go wraps the `oneof` in, for the messages that do,
    /// and the members which it writes there.
    fn wrapper(&self) -> Option<(&'static str, &'static [&'static str])> {
        match self.0.descriptor().full_name() {
            "pb.Op" => Some(("Op", &["exec", "source", "file", "build", "merge", "diff", "passthrough"])),
            "pb.FileAction" => Some(("Action", &["copy", "mkfile", "mkdir", "rm"])),
            "pb.UserOpt" => Some(("User", &["byName", "byID"])),
            _ => None,
        }
    }
}

impl Serialize for Go<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let wrapper = self.wrapper();
        let descriptor = self.0.descriptor();
        let mut fields: Vec<_> = descriptor.fields().collect();
        fields.sort_by_key(prost_reflect::FieldDescriptor::number);
        let mut map = serializer.serialize_map(None)?;
        let mut wrapped = false;
        for field in fields {
            if field.containing_oneof().is_some() && wrapper.is_some() {
                // All members stand where the first of them is declared.
                if let (Some((name, members)), false) = (wrapper, wrapped) {
                    wrapped = true;
                    map.serialize_entry(name, &Chosen { message: self.0, members })?;
                }
                continue;
            }
            let always = descriptor.full_name() == "pb.FileAction";
            if always {
                map.serialize_entry(field.json_name(), &GoValue(&self.0.get_field(&field)))?;
            } else if self.0.has_field(&field) {
                map.serialize_entry(field.name(), &GoValue(&self.0.get_field(&field)))?;
            }
        }
        map.end()
    }
}

/// The chosen member of a `oneof`, as a struct of its own.
struct Chosen<'a> {
    message: &'a DynamicMessage,
    members: &'static [&'static str],
}

impl Serialize for Chosen<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for name in self.members {
            let Some(value) = self.message.get_field_by_name(name) else { continue };
            if !self.message.has_field_by_name(name) || matches!(*value, Value::U32(0)) {
                continue;
            }
            let name = if *name == "byID" { "byId" } else { name };
            map.serialize_entry(name, &GoValue(&value))?;
        }
        map.end()
    }
}

struct GoValue<'a>(&'a Value);

impl Serialize for GoValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Bool(v) => serializer.serialize_bool(*v),
            Value::I32(v) | Value::EnumNumber(v) => serializer.serialize_i32(*v),
            Value::I64(v) => serializer.serialize_i64(*v),
            Value::U32(v) => serializer.serialize_u32(*v),
            Value::U64(v) => serializer.serialize_u64(*v),
            Value::F32(v) => serializer.serialize_f32(*v),
            Value::F64(v) => serializer.serialize_f64(*v),
            Value::String(v) => serializer.serialize_str(v),
            Value::Bytes(v) => serializer.serialize_str(&STANDARD.encode(v)),
            Value::Message(v) => Go(v).serialize(serializer),
            Value::List(v) => {
                let mut seq = serializer.serialize_seq(Some(v.len()))?;
                for item in v {
                    seq.serialize_element(&GoValue(item))?;
                }
                seq.end()
            }
            Value::Map(v) => {
                let mut entries = Vec::with_capacity(v.len());
                for (key, value) in v {
                    let key = match key {
                        MapKey::String(k) => k.clone(),
                        MapKey::Bool(k) => k.to_string(),
                        MapKey::I32(k) => k.to_string(),
                        MapKey::I64(k) => k.to_string(),
                        MapKey::U32(k) => k.to_string(),
                        MapKey::U64(k) => k.to_string(),
                    };
                    entries.push((key, value));
                }
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(&key, &GoValue(value))?;
                }
                map.end()
            }
        }
    }
}
