// The token endpoint, after the Salesforce pages on OAuth flows.
'use strict';

const crypto = require('crypto');

const JWT_GRANT = 'urn:ietf:params:oauth:grant-type:jwt-bearer';
const LOGIN_URL = 'https://login.salesforce.com';

class Refusal extends Error {
    constructor(error, description) {
        super(description);
        this.error = error;
    }
}

class Login {
    constructor(url) {
        this.url = url;
        this.settings = {
            client_id: 'consumer-key',
            client_secret: 'consumer-secret',
            username: 'user@example.com',
            password: 'password-and-security-token',
            refresh_token: 'refresh-token',
            // The public key, as PEM, of the app's certificate.
            certificate: null,
            // Whether a refresh token is good for one use only.
            rotate: false,
            // What is returned as instance_url; null: this server.
            instance_url: null,
            // An error that every log-in meets with: [error, error_description].
            refuse: null,
        };
        this.issued = 0;
        this.revoke();
    }

    revoke() {
        this.tokens = new Set();
    }

    // Gives [status, body].
    answer(method, text) {
        try {
            return [200, this.grant(method, new URLSearchParams(text))];
        } catch (failure) {
            if (!(failure instanceof Refusal)) {
                throw failure;
            }
            return [400, { error: failure.error, error_description: failure.message }];
        }
    }

    // Gives what is wrong with the header of a request, or null.
    refusal(authorization) {
        if (!authorization) {
            return '401::Request requires authentication';
        }
        const [scheme, token] = authorization.split(' ');
        return scheme === 'Bearer' && this.tokens.has(token) ? null : '401::Authentication invalid';
    }

    grant(method, form) {
        if (method !== 'POST') {
            throw new Refusal('invalid_request', 'must use HTTP POST');
        }
        if (this.settings.refuse) {
            throw new Refusal(...this.settings.refuse);
        }
        switch (form.get('grant_type')) {
            case 'password':
                this.checkApp(form);
                this.checkUser(form);
                return this.reply({});
            case 'refresh_token':
                this.checkApp(form);
                return this.reply(this.refresh(form));
            case 'client_credentials':
                this.checkApp(form);
                return this.reply({ scope: 'api' });
            case JWT_GRANT:
                this.checkAssertion(form.get('assertion') || '');
                return this.reply({ scope: 'id full' });
            default:
                throw new Refusal('unsupported_grant_type', 'grant type not supported');
        }
    }

    checkApp(form) {
        if (form.get('client_id') !== this.settings.client_id) {
            throw new Refusal('invalid_client_id', 'client identifier invalid');
        }
        if (form.get('client_secret') !== this.settings.client_secret) {
            throw new Refusal('invalid_client', 'invalid client credentials');
        }
    }

    checkUser(form) {
        if (['username', 'password'].some((name) => form.get(name) !== this.settings[name])) {
            throw new Refusal('invalid_grant', 'authentication failure');
        }
    }

    refresh(form) {
        if (form.get('refresh_token') !== this.settings.refresh_token) {
            throw new Refusal('invalid_grant', 'expired access/refresh token');
        }
        if (!this.settings.rotate) {
            return { scope: 'id api refresh_token' };
        }
        this.settings.refresh_token = `rotated-${crypto.randomBytes(8).toString('hex')}`;
        return { scope: 'id api refresh_token', refresh_token: this.settings.refresh_token };
    }

    checkAssertion(assertion) {
        const [header, claims, signature] = assertion.split('.');
        if (!signature || !this.settings.certificate || decoded(header).alg !== 'RS256') {
            throw new Refusal('invalid_grant', 'invalid assertion');
        }
        const signed = Buffer.from(`${header}.${claims}`);
        const bytes = Buffer.from(signature, 'base64url');
        if (!crypto.verify('RSA-SHA256', signed, this.settings.certificate, bytes)) {
            throw new Refusal('invalid_grant', 'invalid assertion');
        }
        const { iss, sub, aud, exp } = decoded(claims);
        if (iss !== this.settings.client_id || sub !== this.settings.username) {
            throw new Refusal('invalid_grant', "user hasn't approved this consumer");
        }
        if (aud !== LOGIN_URL) {
            throw new Refusal('invalid_grant', 'audience is invalid');
        }
        if (!(exp > Date.now() / 1000)) {
            throw new Refusal('invalid_grant', 'expired authorization code');
        }
    }

    reply(more) {
        // With the characters that real ones have and that must not be changed on their way.
        const token = `00D000000000001!AQ.${++this.issued}_${crypto.randomBytes(12).toString('hex')}`;
        this.tokens.add(token);
        const id = `${LOGIN_URL}/id/00D000000000001AAA/005000000000001AAA`;
        const issuedAt = String(Date.now());
        const signature = crypto.createHmac('sha256', this.settings.client_secret);
        return {
            access_token: token,
            instance_url: this.settings.instance_url || this.url,
            id,
            token_type: 'Bearer',
            issued_at: issuedAt,
            signature: signature.update(id + issuedAt).digest('base64'),
            ...more,
        };
    }
}

function decoded(part) {
    return JSON.parse(Buffer.from(part, 'base64url').toString());
}

module.exports = { Login };
