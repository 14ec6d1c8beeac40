//! Who asked for what, while frontends run.
//!
//! A build is a tree of requests: the client's, the frontend it names, those
//! that one runs. Every planned result belongs to the request it was planned
//! for, and is told together with what else was made for that request.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Failure, Platform};
use export::PlatformEntry;
use frontend::gateway::RefId;
use ops::used::Material;
use parking_lot::Mutex;
use proto::pb;

use super::Capture;
use super::capture::{self, RequestProvenance};
use super::producers::{Producers, Registered};

/// A frontend with what it was given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Call {
    pub(crate) frontend: String,
    pub(crate) opts: BTreeMap<String, String>,
    pub(crate) inputs: BTreeMap<String, pb::Definition>,
}

impl Call {
    fn says_something(&self) -> bool {
        !self.frontend.is_empty() || !self.opts.is_empty() || !self.inputs.is_empty()
    }
}

/// A request and what came of it.
pub(crate) struct Asked {
    /// None: the client itself, whose definitions are nobody's.
    call: Option<Arc<Call>>,
    /// The client's request.
    root: Arc<Call>,
    producers: Producers,
    made: Mutex<Made>,
}

#[derive(Default)]
struct Made {
    /// Images that were looked up.
    images: Vec<Material>,
    refs: Vec<RefId>,
    nested: Vec<Arc<Asked>>,
    registered: Vec<Registered>,
}

impl Asked {
    /// The client's request.
    pub(crate) fn client(root: Call, producers: Producers) -> Arc<Self> {
        Arc::new(Self { call: None, root: Arc::new(root), producers, made: Mutex::default() })
    }

    /// The client's request.
    pub(crate) fn root(&self) -> &Call {
        &self.root
    }

    /// A request made on the way to this one's answer. Counts once it has
    /// succeeded: see [`Self::adopt`].
    pub(crate) fn nested(&self, call: Call) -> Arc<Self> {
        let own = self.call.as_ref().unwrap_or(&self.root);
        let root = if self.root.says_something() { &self.root } else { own };
        Arc::new(Self {
            call: Some(Arc::new(call)),
            root: root.clone(),
            producers: self.producers.clone(),
            made: Mutex::default(),
        })
    }

    pub(crate) fn adopt(&self, nested: Arc<Self>) {
        self.made.lock().nested.push(nested);
    }

    /// A result was planned for this request; `definition` is how.
    pub(crate) fn planned(&self, id: RefId, definition: &pb::Definition) {
        let registered = self.call.as_ref().and_then(|call| {
            let request = self.request(call, &[]);
            self.producers.register(definition, request)
        });
        let mut made = self.made.lock();
        made.refs.push(id);
        made.registered.extend(registered);
    }

    pub(crate) fn looked_up(&self, image: Material) {
        self.made.lock().images.push(image);
    }

    /// Forgets everything: nothing of this build is an input any more.
    pub(crate) fn release(&self) {
        let (nested, registered) = {
            let mut made = self.made.lock();
            (std::mem::take(&mut made.nested), std::mem::take(&mut made.registered))
        };
        drop(registered);
        nested.iter().for_each(|n| n.release());
    }

    /// The request for which `id` was planned.
    pub(crate) fn owner(self: &Arc<Self>, id: &RefId) -> Option<Arc<Self>> {
        let made = self.made.lock();
        let nested = made.nested.iter().find_map(|n| n.owner(id));
        nested.or_else(|| made.refs.contains(id).then(|| self.clone()))
    }

    /// What the result `id` was made from: itself by `capture_of`, and what
    /// else was made for the same request, unless it is one of `results`.
    ///
    /// # Errors
    /// When an image's name is none.
    pub(crate) fn capture(
        &self,
        id: &RefId,
        results: &[RefId],
        platforms: &[PlatformEntry],
        platform: Option<&str>,
        capture_of: &dyn Fn(&RefId) -> Option<Capture>,
    ) -> Result<Option<Capture>, Failure> {
        let Some(mut capture) = capture_of(id) else { return Ok(None) };
        if let Some(call) = &self.call {
            let asked = capture::told(&call.opts);
            capture.request.frontend.clone_from(&call.frontend);
            capture.request.args = asked;
            capture.request.inputs = self.inputs(&call.inputs);
            capture.request.root =
                self.other_root(&capture.materials, &self.request_of(call, &capture.materials)).map(Box::new);
        }
        let mut others = Vec::new();
        self.refs(&mut others);
        for other in others.iter().filter(|other| *other != id && !results.contains(other)) {
            if let Some(used) = capture_of(other) {
                capture.merge(used);
            }
        }
        let mut images = Vec::new();
        self.images(&mut images);
        if platform.is_some() {
            images = of_platform(images, platforms, platform);
        }
        images.into_iter().for_each(|image| capture.add(image));
        capture.tidy()?;
        Ok(Some(capture))
    }

    fn refs(&self, out: &mut Vec<RefId>) {
        let made = self.made.lock();
        out.extend(made.refs.iter().cloned());
        made.nested.iter().for_each(|n| n.refs(out));
    }

    fn images(&self, out: &mut Vec<Material>) {
        let made = self.made.lock();
        out.extend(made.images.iter().cloned());
        made.nested.iter().for_each(|n| n.images(out));
    }

    fn inputs(&self, inputs: &BTreeMap<String, pb::Definition>) -> BTreeMap<String, RequestProvenance> {
        let known = inputs
            .iter()
            .filter_map(|(name, definition)| Some((name.clone(), self.producers.find(definition)?)));
        known.collect()
    }

    fn request_of(&self, call: &Call, materials: &[Material]) -> RequestProvenance {
        let mut request = capture::request(&call.frontend, capture::told(&call.opts), materials);
        request.request.inputs = self.inputs(&call.inputs);
        request
    }

    /// As [`Self::request_of`], with the client's request when that is another.
    fn request(&self, call: &Call, materials: &[Material]) -> RequestProvenance {
        let mut request = self.request_of(call, materials);
        request.request.root = self.other_root(materials, &request).map(Box::new);
        request
    }

    fn other_root(&self, materials: &[Material], own: &RequestProvenance) -> Option<RequestProvenance> {
        if !self.root.says_something() {
            return None;
        }
        let root = self.request_of(&self.root, materials);
        let r = &root.request;
        let empty = r.frontend.is_empty() && r.args.is_empty() && r.inputs.is_empty();
        (!empty && root != *own).then_some(root)
    }
}

/// `images` without those of other platforms, where there is one for each.
fn of_platform(images: Vec<Material>, platforms: &[PlatformEntry], wanted: Option<&str>) -> Vec<Material> {
    let Some(current) = platforms.iter().find(|p| wanted == Some(p.id.as_str())) else { return images };
    let for_each = |name: &str| {
        platforms.iter().all(|p| {
            images.iter().any(|image| {
                matches!(image, Material::Image { reference, platform: Some(of), .. }
                    if reference == name && is_same(&p.platform, of))
            })
        })
    };
    let fits = |image: &Material| match image {
        Material::Image { reference, platform: Some(of), .. } if for_each(reference) => {
            of.os == current.platform.os && of.architecture == current.platform.architecture
        }
        _ => true,
    };
    images.iter().filter(|image| fits(image)).cloned().collect()
}

fn is_same(a: &Platform, b: &Platform) -> bool {
    let b = b.clone().normalized();
    (&a.os, &a.architecture, &a.variant) == (&b.os, &b.architecture, &b.variant)
}
