// Uses the server as any program on the CometD project's JavaScript client does.
import { adapt } from 'cometd-nodejs-client';
import { CometD } from 'cometd';

const [url, token, channel, replayId] = process.argv.slice(2);
adapt();
const client = new CometD();
client.unregisterTransport('websocket');
client.configure({ url, requestHeaders: { Authorization: `Bearer ${token}` }, logLevel: 'warn' });
client.registerExtension('replay', {
    outgoing: (message) => {
        if (message.channel === '/meta/handshake') {
            message.ext = Object.assign({}, message.ext, { replay: true });
        } else if (message.channel === '/meta/subscribe') {
            message.ext = Object.assign({}, message.ext, { replay: { [channel]: Number(replayId) } });
        }
        return message;
    },
});
const say = (what, value) => console.log(JSON.stringify({ what, value }));
client.handshake((handshake) => {
    say('handshake', handshake.successful && handshake.ext.replay);
    const subscription = client.subscribe(
        channel,
        (message) => {
            say('event', message.data.event.replayId);
            if (message.data.payload.Last__c) {
                client.unsubscribe(subscription, (reply) => {
                    say('unsubscribed', reply.successful);
                    client.disconnect((bye) => {
                        say('disconnected', bye.successful);
                        process.exit(0);
                    });
                });
            }
        },
        (reply) => say('subscribed', reply.successful),
    );
});
setTimeout(() => process.exit(3), 15000);
