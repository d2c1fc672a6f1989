//! What engines do while nobody asks.

use std::collections::BTreeMap;
use std::time::Duration;

use bitnet::{
    BitNetModel, GenerationConfig, ModelConfig, SamplingStrategy, WaitPolicy, automatic_threads,
};

use crate::support::testdata;

/// Ticks of processor time, a hundredth of a second each, that the compute threads of this process have used, by thread.
#[cfg(target_os = "linux")]
fn used() -> BTreeMap<String, u64> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let stat = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, rest) = text.split_once(") ")?;
        let fields: Vec<_> = rest.split(' ').collect();
        let ticks = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
        let ours = name.contains("(bitnet-engine") || name.contains("(bitnet-w");
        ours.then_some((name.to_owned(), ticks))
    };
    tasks.filter_map(|task| stat(task.ok()?)).collect()
}

fn greedy(tokens: usize) -> GenerationConfig {
    GenerationConfig {
        sampling_strategy: SamplingStrategy::Greedy,
        max_new_tokens: tokens,
        ignore_eos: true,
        ..GenerationConfig::default()
    }
}

/// Alone in its process, because threads of other tests would count.
#[cfg(target_os = "linux")]
#[test]
fn idle_engines_use_no_processor_time() {
    if std::env::var_os("BITNET_TEST_IDLE").is_none() {
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        alone.args(["idle::idle_engines_use_no_processor_time", "--exact", "--nocapture"]);
        let output = alone.env("BITNET_TEST_IDLE", "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    for wait_policy in [WaitPolicy::Balanced, WaitPolicy::Active, WaitPolicy::Passive] {
        let config = ModelConfig { threads: 2, wait_policy, ..ModelConfig::default() };
        let models = [0, 1].map(|_| {
            BitNetModel::from_pretrained(testdata("demo-model/packed"))
                .with_config(config.clone())
                .load()
                .unwrap()
        });
        for model in &models {
            model.generate_blocking("Once upon a time", &greedy(8)).unwrap();
        }
        std::thread::sleep(Duration::from_millis(200)); // even active threads have gone to sleep by then
        let before = used();
        assert_eq!(before.len(), 4, "{before:?}");
        std::thread::sleep(Duration::from_secs(1));
        let after = used();
        let ticks: u64 = after.iter().map(|(task, ticks)| ticks - before[task]).sum();
        assert!(ticks <= 2, "{wait_policy:?}: {ticks} of 400 ticks\n{before:?}\n{after:?}");
    }
}

#[test]
fn two_engines_at_once_write_what_they_write_alone() {
    let config = ModelConfig { threads: 2, ..ModelConfig::default() };
    let models = [0, 1].map(|_| {
        BitNetModel::from_pretrained(testdata("demo-model/packed"))
            .with_config(config.clone())
            .load()
            .unwrap()
    });
    let prompts = ["Once upon a time", "The little dog"];
    let write = |model: &BitNetModel, prompt: &str| {
        model.generate_blocking(prompt, &greedy(60)).unwrap().ids
    };
    let alone = prompts.map(|prompt| write(&models[0], prompt));
    for _ in 0..3 {
        std::thread::scope(|scope| {
            let write = &write;
            let running = [0, 1].map(|i| {
                scope.spawn({
                    let model = &models[i];
                    move || write(model, prompts[i])
                })
            });
            let together = running.map(|thread| thread.join().unwrap());
            assert_eq!(together, alone);
        });
    }
}

#[test]
fn separate_numbers_of_threads_write_the_same() {
    let write = |threads: usize, threads_batch: usize| {
        let config = ModelConfig { threads, threads_batch, ..ModelConfig::default() };
        let model = BitNetModel::from_pretrained(testdata("demo-model/packed"))
            .with_config(config)
            .load()
            .unwrap();
        let prompt = "Once upon a time there was a little girl who had a red ball and a dog";
        (model.info().threads, model.generate_blocking(prompt, &greedy(30)).unwrap().ids)
    };
    let (_, expected) = write(1, 1);
    for (threads, threads_batch, all) in
        [(1, 3, 3), (3, 1, 3), (6, 0, 6), (0, 7, automatic_threads().max(7))]
    {
        assert_eq!(
            write(threads, threads_batch),
            (all, expected.clone()),
            "-t {threads} -tb {threads_batch}"
        );
    }
}
