use brigade_embedded::{Options, Store};

use super::*;

/// A file and a state, and writers as so many processes would have them.
struct Place(tempfile::TempDir, Arc<dyn StateStore>);

impl Place {
    fn new() -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let state = Store::open(&place.path().join("state"), Options::default());
        Self(place, state.expect("a state"))
    }

    fn writer(&self) -> Arc<Writer> {
        Arc::new(Writer::new(self.0.path().join("out"), Compression::None, &self.1))
    }

    async fn put(&self, writer: &Arc<Writer>, line: &str) -> Result<(), ConnectorError> {
        let Appended { op, hold } = writer.append(format!("{line}\n").into_bytes()).await?;
        self.1.commit(vec![op]).await?;
        hold.commit();
        Ok(())
    }

    /// Writes as somebody else, once no writer has the file locked.
    fn append(&self, text: &str) {
        let file = OpenOptions::new().append(true).open(self.0.path().join("out"));
        let mut file = file.expect("it is there");
        file.lock().expect("it can be locked");
        file.write_all(text.as_bytes()).expect("it is written");
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.0.path().join("out")).expect("a text")
    }
}

#[tokio::test]
async fn a_writer_that_closed_leaves_no_note_whatever_others_do() {
    let place = Place::new();
    let (a, b) = (place.writer(), place.writer());
    for writer in [&a, &b, &a] {
        place.put(writer, "1").await.expect("it is written");
    }
    b.close().await.expect("it closes");
    place.put(&a, "2").await.expect("it is written");
    a.close().await.expect("it closes");
    place.append("of somebody else\n");
    let refused = place.put(&place.writer(), "3").await.expect_err("it is refused");
    assert!(refused.to_string().contains("somebody else has written the rest"), "{refused}");
    assert_eq!(place.text(), "1\n1\n1\n2\nof somebody else\n");
}

#[tokio::test]
async fn what_is_being_committed_to_a_file_that_is_renamed_meanwhile_stays() {
    let place = Place::new();
    let (a, b) = (place.writer(), place.writer());
    place.put(&a, "1").await.expect("it is written");
    let Appended { op, hold } = a.append(b"2\n".to_vec()).await.expect("it is written");
    let away = place.0.path().join("away");
    std::fs::rename(place.0.path().join("out"), &away).expect("it is renamed");
    let committed = async {
        // The other has begun a new one, and finds that this one was not let go.
        while !place.0.path().join("out").exists() {
            tokio::task::yield_now().await;
        }
        place.1.commit(vec![op]).await.expect("it is committed");
        hold.commit();
    };
    let (other, ()) = tokio::join!(place.put(&b, "3"), committed);
    other.expect("it is written");
    place.put(&a, "4").await.expect("it is written");
    assert_eq!(std::fs::read_to_string(&away).expect("a text"), "1\n2\n");
    assert_eq!(place.text(), "3\n4\n");
}

#[tokio::test]
async fn what_one_of_several_writers_left_at_its_death_is_cut_off() {
    let place = Place::new();
    let (a, b) = (place.writer(), place.writer());
    // The note of who came first is taken back by who comes later, and put again.
    for writer in [&a, &b, &a, &b] {
        place.put(writer, "1").await.expect("it is written");
    }
    drop(a.append(b"2\n".to_vec()).await.expect("it is written"));
    b.close().await.expect("it closes");
    // In the midst of its next append.
    place.append("torn");
    drop(a);
    place.put(&place.writer(), "3").await.expect("it is written");
    assert_eq!(place.text(), "1\n1\n1\n1\n3\n");
}

/// As `copytruncate` does between two looks: what is written at the old place would leave a hole before it.
#[tokio::test]
async fn a_file_that_is_cut_before_it_is_written_gets_no_hole() {
    let place = Place::new();
    let a = place.writer();
    place.put(&a, "1").await.expect("it is written");
    let mut locked = a.lock(Arc::clone(&a.inner).lock_owned().await).expect("it is locked");
    let before = a.prepare(&mut locked).await.expect("it is there");
    locked.open().set_len(0).expect("it is cut");
    let (account, runtime) = (Arc::clone(&a.account), Handle::current());
    let begin = before.length;
    let mut appending = Appending { locked: Some(locked), before, begin, account, runtime };
    let error = appending.append(b"2\n", Compression::None).expect_err("it is cut");
    let error = failed(&a.path, &error);
    assert!(error.is_transient() && error.to_string().contains("it was cut"), "{error}");
    drop(appending);
    place.put(&a, "2").await.expect("it is written");
    assert_eq!(place.text(), "2\n");
}
