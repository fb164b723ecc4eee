"""Has a gateway learn an adapter, by the official client of OpenAI, and asks the model with it.

    python fine_tuning.py http://127.0.0.1:8080 DATA.jsonl

The first thing that is not as it should be ends it with an AssertionError.
"""

import sys
import time

import openai

MODEL = "smollm2-135m"
QUESTION = [{"role": "user", "content": "What is a bridge?"}]


def wait_for(client, job, status):
    deadline = time.monotonic() + 240
    while job.status in ("queued", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == status, job
    return job


def answer(client, model):
    whole = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=12)
    assert whole.model == model, whole
    return whole.choices[0].message.content


def main(url, data):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with open(data, "rb") as lines:
        file = client.files.create(file=lines, purpose="fine-tune")
    assert file.bytes == len(open(data, "rb").read()) and file.purpose == "fine-tune", file
    assert client.files.content(file.id).read() == open(data, "rb").read()
    assert [one.id for one in client.files.list()] == [file.id]

    with open(data, "rb") as lines:
        others = client.files.create(file=("others.jsonl", next(lines)), purpose="fine-tune")

    supervised = {"hyperparameters": {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 5}}
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file.id,
        validation_file=others.id,
        suffix="keeper",
        seed=1,
        method={"type": "supervised", "supervised": supervised},
    )
    assert job.status == "queued" and job.fine_tuned_model is None, job
    job = wait_for(client, job, "succeeded")
    assert job.fine_tuned_model.startswith(f"ft:{MODEL}:umbel:keeper:"), job
    assert job.finished_at >= job.created_at and job.error is None, job
    events = list(client.fine_tuning.jobs.list_events(job.id))
    losses = [event.data["train_loss"] for event in events if "train_loss" in event.data]
    assert all(event.type == "metrics" for event in events), events
    assert any("full_valid_loss" in event.data for event in events), events
    assert job.validation_file == others.id, job
    rows = client.files.content(job.result_files[0]).text.splitlines()
    assert rows[0] == "step,train_loss,valid_loss" and len(rows) > len(losses), rows
    assert len(losses) > 4 and losses[0] < losses[-1], losses

    assert job.fine_tuned_model in {model.id for model in client.models.list()}
    learned = answer(client, job.fine_tuned_model)
    assert learned and learned != answer(client, MODEL), learned
    assert client.models.delete(job.fine_tuned_model).deleted
    assert job.fine_tuned_model not in {model.id for model in client.models.list()}

    assert client.files.delete(file.id).deleted and client.files.delete(others.id).deleted
    assert [one.purpose for one in client.files.list()] == ["fine-tune-results"]
    try:
        client.fine_tuning.jobs.create(model=MODEL, training_file=file.id)
        raise AssertionError("a file that is gone was learned")
    except openai.BadRequestError as error:
        assert error.param == "training_file", error


if __name__ == "__main__":
    main(*sys.argv[1:])
