-- A task for each order that is committed. Once before it: queuedtask db functions
CREATE TABLE orders (id serial PRIMARY KEY, customer text);

CREATE FUNCTION send_receipt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM queuedtask_add_task(
        'shop:send_receipt', jsonb_build_array(NEW.id),
        name => 'Receipt of order ' || NEW.id, delay => '1 second', unique_key => 'receipt-' || NEW.id);
    RETURN NULL;
END $$;

CREATE TRIGGER send_receipt AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION send_receipt();

INSERT INTO orders (customer) VALUES ('Ann'), ('Bob');

-- A family, by hand: the second waits for the first.
SELECT queuedtask_add_task('shop:send_receipt', '[4]', parent => queuedtask_add_task('shop:send_receipt', '[3]'));
