// The CometD project's own server, with the replay extension of the Salesforce Streaming API.
'use strict';

const cometd = require('cometd-nodejs-server');

// The events of a channel that are within the retention window.
class Store {
    constructor() {
        this.events = [];
        this.positions = new Map();
        this.discarded = 0;
    }

    add(data) {
        this.positions.set(data.event.replayId, this.discarded + this.events.length);
        this.events.push(data);
    }

    knows(id) {
        return id === -1 || id === -2 || this.positions.has(id);
    }

    after(id) {
        if (id === -1) {
            return [];
        }
        const start = id === -2 ? this.discarded : this.positions.get(id) + 1;
        return this.events.slice(start - this.discarded);
    }

    discard(keep) {
        const count = Math.max(0, this.events.length - keep);
        this.events.splice(0, count).forEach((data) => this.positions.delete(data.event.replayId));
        this.discarded += count;
    }
}

class Streaming {
    constructor() {
        this.options = { timeout: 20000, maxInterval: 40000, sweepPeriod: 47 };
        this.stores = new Map();
        // Errors by channel, and the only channels that there are, if that is limited.
        this.denied = new Map();
        this.existing = null;
        this.start();
    }

    // Starts a CometD server, which knows of no session that there was.
    start() {
        if (this.server) {
            this.server.close();
        }
        this.sessions = new Map();
        this.server = cometd.createCometDServer(this.options);
        this.server.policy = {
            canCreate: (session, message, name, callback) => callback(undefined, this.exists(name)),
        };
        this.server.addListener('sessionAdded', (session) => this.sessions.set(session.id, session));
        const sessions = this.sessions;
        this.server.addListener('sessionRemoved', (session) => sessions.delete(session.id));
        this.server.addListener('subscribed', (channel, session, message) => this.replay(channel, session, message));
        this.server.addExtension({ outgoing: announce });
    }

    close() {
        this.server.close();
    }

    // Forgets the sessions as the server's own sweeper forgets those whose clients stay away.
    expire() {
        [...this.sessions.values()].forEach((session) => {
            if (session._scheduler) {
                session._scheduler.cancel();
            }
            this.server._removeServerSession(session, true);
        });
    }

    disconnect() {
        [...this.sessions.values()].forEach((session) => session.disconnect());
    }

    store(name) {
        if (!this.stores.has(name)) {
            this.stores.set(name, new Store());
        }
        return this.stores.get(name);
    }

    exists(name) {
        return !this.existing || !name.startsWith('/event/') || this.existing.includes(name);
    }

    publish(events) {
        // All sessions hold their answers back until the last event, so that one answer has them all.
        const sessions = [...this.sessions.values()];
        const deliver = (index) => {
            if (index < sessions.length) {
                sessions[index].batch(() => deliver(index + 1));
                return;
            }
            events.forEach(([name, data]) => {
                this.store(name).add(data);
                this.server.createServerChannel(name).publish(null, data);
            });
        };
        deliver(0);
    }

    // Gives why a subscription is refused, or null.
    refusal(message) {
        const name = message.subscription;
        if (this.denied.has(name)) {
            return this.denied.get(name);
        }
        const map = message.ext && message.ext.replay;
        if (!map) {
            return null;
        }
        if (!Object.prototype.hasOwnProperty.call(map, name)) {
            const entries = Object.entries(map).map(([key, id]) => `${key}=${id}`);
            return `400::The replayId for channel {${name}} wasn't found using the provided replay ID map {{${entries}}}. Ensure that the channel name you provided in the replay map is valid and matches the channel name used for subscribing.`;
        }
        if (!this.store(name).knows(map[name])) {
            return `400::The replayId {${map[name]}} you provided was invalid.  Please provide a valid ID, -2 to replay all events, or -1 to replay only new events.`;
        }
        return null;
    }

    replay(channel, session, message) {
        const map = message.ext && message.ext.replay;
        if (map) {
            const events = this.store(channel.name).after(map[channel.name]);
            events.forEach((data) => session.deliver(null, channel.name, data));
        }
    }

    get subscriptions() {
        return [...this.sessions.values()].flatMap((session) => session.subscriptions.map((one) => one.name));
    }

    // How many sessions wait for events.
    get held() {
        return [...this.sessions.values()].filter((session) => session._scheduler).length;
    }
}

function announce(server, sender, session, message, callback) {
    if (message.channel === '/meta/handshake' && message.successful) {
        message.ext = { ...message.ext, replay: true, 'payload.format': true };
    }
    callback(undefined, true);
}

module.exports = { Streaming };
