// What is pressed on the page: keys and buttons that bear data-action. A press is kept until the server has acknowledged it: it is sent again and
// again, in order, by plain requests that need no open socket, and goes on where the page was loaded anew. What it means is decided when it is
// made, by the button that bears its key, so that one that arrives late is never taken for its contrary.
(() => {
    const STORE = "rtevo-presses";
    const kept = () => JSON.parse(sessionStorage.getItem(STORE) || "[]");
    const keep = (presses) => sessionStorage.setItem(STORE, JSON.stringify(presses));
    const seen = (element) => element.getClientRects().length > 0 && !element.disabled && !element.classList.contains("disabled");
    let asked = Date.now(), sending = false;

    const show = () => {
        document.body.classList.toggle("unheard", kept().some((press) => Date.now() - press.made > 1000));
        for (const button of document.querySelectorAll("[data-action]"))
            button.classList.toggle("pressed", kept().some((press) => press.action === button.dataset.action && press.text === button.dataset.text));
    };
    const send = async () => {
        if (sending) return;
        sending = true;
        for (let patience = 1000; kept().length > 0; show()) {
            const {id, action, text, meant} = kept()[0];
            const body = JSON.stringify({id, action, text, client: CLIENT, age_ms: Math.max(0, Date.now() - meant)});
            const signal = AbortSignal.timeout(patience);
            const options = {method: "POST", cache: "no-store", headers: {"Content-Type": "application/json"}, body, signal};
            const began = Date.now(), answer = await fetch("press", options).catch(() => null);
            if (answer?.ok || answer?.status === 422) {
                keep(kept().filter((press) => press.id !== id));
                patience = 1000;
            } else {
                patience = Math.min(2 * patience, 8000);
                await new Promise((then) => setTimeout(then, Math.max(0, 500 - (Date.now() - began))));
            }
        }
        sending = false;
    };
    const press = (action, text) => {
        if (action === "ask-mark") asked = Date.now();
        const meant = action === "note" ? asked : Date.now();
        if (action !== "note" || !kept().some((other) => other.action === "note"))
            keep([...kept(), {id: Math.random().toString(36).slice(2), action, text, meant, made: Date.now()}]);
        show();
        send();
    };

    document.addEventListener("keydown", (event) => {
        if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
        if (event.target instanceof HTMLInputElement && event.key !== "Escape") {
            if (event.key === "Enter") press("note", event.target.value);
            return;
        }
        const part = [...document.querySelectorAll(".q-dialog")].filter(seen).pop() || document.querySelector(".page");
        const key = event.key.length === 1 ? event.key.toUpperCase() : event.key;
        const button = [...(part?.querySelectorAll("[data-action]") || [])].find((each) => each.dataset.key === key && seen(each));
        if (!button) return;
        event.preventDefault();
        press(button.dataset.action, button.dataset.text);
    });
    document.addEventListener("click", (event) => {
        const button = event.target instanceof Element ? event.target.closest("[data-action]") : null;
        if (button && seen(button)) press(button.dataset.action, button.dataset.text);
    });
    setInterval(() => { show(); send(); }, 1000);

    // A page that has lost its server looks for it every second, and is loaded again only where the server does not know it any more: it was
    // started again. One that is only slow is waited for; and there is no way back from an error page.
    const settle = setInterval(() => {
        const socket = window.socket;
        if (!socket) return;
        clearInterval(settle);
        socket.io.reconnectionDelay(500);
        socket.io.reconnectionDelayMax(1000);
        socket.off("connect_error");
        socket.on("connect_error", async () => {
            const answer = await fetch("alive/" + CLIENT, {cache: "no-store", signal: AbortSignal.timeout(8000)}).catch(() => null);
            if (answer?.status === 404) location.reload();
            else if (!socket.active) setTimeout(() => socket.connect(), 500);
        });
    }, 20);
})();
