from django.db import transaction
from django.http import JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from orders.models import Order
from orders.tasks import charge, confirm, mail_receipt
from queuedtask.contrib.django import queue


@csrf_exempt  # for curl
@require_POST
def place_order(request):
    try:
        with transaction.atomic():
            order = Order.objects.create(email=request.POST["email"], cents=request.POST["cents"])
            charged = charge.delay(order.pk)
            confirmed = queue.add_task(confirm, order.pk, parent=charged)
            mail = queue.add_task(mail_receipt, order.pk, parent=confirmed)
            check_price(order)  # late on purpose: what was added above vanishes with the order
    except (KeyError, ValueError) as error:
        return JsonResponse({"error": str(error)}, status=400)
    return JsonResponse({"order": order.pk, "mail": mail.id}, status=201)


def check_price(order):
    if int(order.cents) <= 0:
        raise ValueError("an order costs something")


def show_order(request, order_id):
    order = get_object_or_404(Order, pk=order_id)
    return JsonResponse({"order": order.pk, "state": order.state})
