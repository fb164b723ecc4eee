// Server-sent events of an answer to a POST, which EventSource cannot send.

// Gives the data of each event as it comes; a failure is an Error with what the gateway says.
export async function* stream(path, body, headers, signal) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw new Error(await complaint(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the gateway has closed the connection");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const data = line.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// What a response that is no answer says.
export async function complaint(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the gateway answers ${response.status}`;
  }
}
