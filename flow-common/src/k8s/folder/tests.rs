//! The folder on a real file system.

use std::os::unix::fs::symlink;
use std::time::Duration;

use super::super::object::Kind;
use super::*;

const WEB: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
spec:
  nodeName: node-1
  containers: []
status:
  podIP: 10.244.1.7
";

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
spec:
  clusterIP: 10.96.0.10
  ports:
  - port: 80
";

struct Manifests {
    directory: tempfile::TempDir,
    folder: Folder,
    refused: usize,
}

impl Manifests {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::new(directory.path());
        Self { directory, folder, refused: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// A look, as lines without the folder's name.
    fn look(&mut self) -> String {
        let Look { changes, errors, ignored, refused } = self.folder.look();
        self.refused = refused.len();
        let mut lines: Vec<String> = changes.iter().map(line).collect();
        lines.extend(errors.iter().map(|error| format!("refused {error}")));
        if ignored > 0 {
            lines.push(format!("ignored {ignored}"));
        }
        lines.join("\n").replace(&format!("{}/", self.directory.path().display()), "")
    }
}

fn line(change: &Change) -> String {
    match change {
        Change::Apply(Object::Pod(pod)) => format!("+ Pod {}/{} {:?}", pod.namespace, pod.name, pod.addresses),
        Change::Apply(object) => format!("+ {}", object.reference()),
        Change::Delete(reference) => format!("- {reference}"),
    }
}

fn pod(name: &str, addr: &str) -> String {
    WEB.replace("name: web", &format!("name: {name}")).replace("10.244.1.7", addr)
}

#[test]
fn changes_since_the_last_look() {
    let mut manifests = Manifests::new();
    manifests.write("web.yaml", format!("{WEB}---\n{SERVICE}"));
    assert_eq!(manifests.look(), "+ Pod shop/web [10.244.1.7]\n+ Service shop/web");
    assert_eq!(manifests.look(), "");
    manifests.write("web.yaml", format!("{}---\n{SERVICE}", pod("web", "10.244.1.8")));
    manifests.write("db.yml", pod("db", "10.244.1.9"));
    assert_eq!(manifests.look(), "+ Pod shop/db [10.244.1.9]\n+ Pod shop/web [10.244.1.8]");
    manifests.remove("web.yaml");
    assert_eq!(manifests.look(), "- Pod shop/web\n- Service shop/web");
}

#[test]
fn what_a_file_gave_stays_while_it_is_wrong() {
    let mut manifests = Manifests::new();
    manifests.write("web.yaml", WEB);
    manifests.look();
    manifests.write("web.yaml", WEB.replace("10.244.1.7", "10.244.1.700"));
    manifests.write("db.yaml", pod("db", "10.244.1.9"));
    assert_eq!(
        manifests.look(),
        "+ Pod shop/db [10.244.1.9]\nrefused web.yaml:10: Pod shop/web: status.podIP: \"10.244.1.700\" is no IP address"
    );
    assert_eq!(manifests.look(), "", "told once");
    assert_eq!(manifests.refused, 1, "and not forgotten");
    manifests.write("web.yaml", pod("web", "10.244.1.8"));
    assert_eq!(manifests.look(), "+ Pod shop/web [10.244.1.8]");
    assert_eq!(manifests.refused, 0);
}

#[test]
fn an_object_has_one_definition() {
    let mut manifests = Manifests::new();
    manifests.write("a.yaml", WEB);
    manifests.write("b.yaml", format!("{SERVICE}---\n{WEB}"));
    let refused = "refused b.yaml:11: Pod shop/web is defined in a.yaml:1 already";
    assert_eq!(manifests.look(), format!("+ Pod shop/web [10.244.1.7]\n{refused}"));

    manifests.write("a.yaml", pod("db", "10.244.1.9"));
    assert_eq!(
        manifests.look(),
        "+ Pod shop/db [10.244.1.9]\n+ Pod shop/web [10.244.1.7]\n+ Service shop/web"
            .replace("+ Pod shop/web [10.244.1.7]\n", ""),
        "the same Pod, now by b.yaml"
    );

    manifests.write("c.yaml", format!("{}---\n{}", pod("x", "10.244.1.1"), pod("x", "10.244.1.2")));
    assert_eq!(manifests.look(), "refused c.yaml:12: Pod shop/x is defined in c.yaml:1 already");
}

#[test]
fn an_object_may_move_to_another_file() {
    let mut manifests = Manifests::new();
    manifests.write("b.yaml", format!("{WEB}---\n{SERVICE}"));
    manifests.look();
    manifests.write("a.yaml", WEB);
    manifests.write("b.yaml", SERVICE);
    assert_eq!(manifests.look(), "");
    manifests.write("a.yaml", SERVICE);
    manifests.write("b.yaml", WEB);
    assert_eq!(manifests.look(), "", "and change places");
}

#[test]
fn of_two_that_take_the_same_object_at_once_the_one_that_had_it_keeps_it() {
    let mut manifests = Manifests::new();
    manifests.write("a.yaml", SERVICE);
    manifests.write("b.yaml", WEB);
    manifests.look();
    manifests.write("a.yaml", format!("{SERVICE}---\n{}", pod("web", "10.244.1.1")));
    manifests.write("b.yaml", pod("web", "10.244.1.2"));
    assert_eq!(
        manifests.look(),
        "+ Pod shop/web [10.244.1.2]\nrefused a.yaml:11: Pod shop/web is defined in b.yaml:1 already"
    );
}

#[test]
fn files_that_are_no_manifests_are_left_alone() {
    let mut manifests = Manifests::new();
    for name in [".web.yaml.swp", ".#web.yaml", "web.yaml~", "4913", "notes.txt", ".hidden.yaml"] {
        manifests.write(name, "apiVersion: [");
    }
    fs::create_dir(manifests.path("folder.yaml")).unwrap();
    manifests.write("empty.yaml", "# nothing yet\n---\n\n---\n");
    manifests.write("empty.json", "\n");
    assert_eq!(manifests.look(), "");
}

#[test]
fn a_mounted_config_map_is_replaced_by_its_link() {
    let mut manifests = Manifests::new();
    for (version, addr) in [("..2026_1", "10.244.1.1"), ("..2026_2", "10.244.1.2")] {
        fs::create_dir(manifests.path(version)).unwrap();
        manifests.write(&format!("{version}/web.yaml"), pod("web", addr));
    }
    symlink("..2026_1", manifests.path("..data")).unwrap();
    symlink("..data/web.yaml", manifests.path("web.yaml")).unwrap();
    assert_eq!(manifests.look(), "+ Pod shop/web [10.244.1.1]");
    symlink("..2026_2", manifests.path("..data_tmp")).unwrap();
    fs::rename(manifests.path("..data_tmp"), manifests.path("..data")).unwrap();
    assert_eq!(manifests.look(), "+ Pod shop/web [10.244.1.2]");
}

#[test]
fn a_folder_that_is_away_takes_nothing_with_it() {
    let mut manifests = Manifests::new();
    fs::create_dir(manifests.path("inner")).unwrap();
    manifests.write("inner/web.yaml", WEB);
    manifests.folder = Folder::new(manifests.path("inner"));
    manifests.look();
    fs::rename(manifests.path("inner"), manifests.path("away")).unwrap();
    assert_eq!(manifests.look(), "refused inner: entity not found");
    fs::rename(manifests.path("away"), manifests.path("inner")).unwrap();
    assert_eq!(manifests.look(), "");
    assert_eq!(manifests.refused, 0);
}

#[test]
fn a_pipe_is_not_waited_for() {
    let mut manifests = Manifests::new();
    let path = std::ffi::CString::new(manifests.path("pipe.yaml").into_os_string().into_encoded_bytes()).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &*path, 0o600.into()).unwrap();
    assert_eq!(manifests.look(), "refused pipe.yaml: invalid input parameter");
}

#[tokio::test]
async fn changes_are_handed_on_as_files_change() {
    let manifests = Manifests::new();
    manifests.write("web.yaml", WEB);
    let (output, mut looks) = tokio::sync::mpsc::channel(4);
    let watching = tokio::spawn(run(Folder::new(manifests.directory.path()), output));
    let mut next = async || {
        let look =
            tokio::time::timeout(Duration::from_secs(20), looks.recv()).await.expect("in time").expect("not closed");
        look.changes.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(next().await, "+ Pod shop/web [10.244.1.7]");

    // As editors do: another file, then its name.
    manifests.write(".web.yaml.new", pod("web", "10.244.1.8"));
    fs::rename(manifests.path(".web.yaml.new"), manifests.path("web.yaml")).unwrap();
    assert_eq!(next().await, "+ Pod shop/web [10.244.1.8]");

    manifests.write("db.json", r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"db"}}"#);
    assert_eq!(next().await, "+ Namespace db");

    manifests.remove("web.yaml");
    assert_eq!(next().await, "- Pod shop/web");

    drop(looks);
    tokio::time::timeout(Duration::from_secs(20), watching).await.expect("ends when nobody listens").unwrap();
}

#[test]
fn kinds_are_named_as_in_manifests() {
    assert_eq!(Kind::ALL.map(|kind| kind.to_string()).join(" "), "Pod Namespace Node Service EndpointSlice");
}
